"""The PyTorch side of a training step; needs the extra `parity`."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks import harness


class Theirs:
    """The PyTorch peer over the same comments, padded."""

    def __init__(
        self, config: dict[str, Any], corpus: harness.Corpus, state: dict[str, np.ndarray] | None,
        device: str, compiled: bool,
    ) -> None:  # fmt: skip
        """`state`: published weights; `compiled`: torch.compile with bfloat16 autocast."""
        import torch
        from transformers import RobertaConfig

        from benchmarks import peer_vccsa

        self.torch, self.peer, self.device = torch, peer_vccsa, device
        self.corpus, self.config = corpus, config
        model, text = config["model"], config["model"]["text"]
        settings = {
            "visual_dim": corpus.features.width, "visual_out_dim": model["visual_width"],
            "visualcnn_dim": model["visual_width"], "vtalign_ground_dim": model["aspect_width"],
            "text_dim": text["width"], "multiview_num": model["num_scales"],
            "consensus_Transformer_fdim": model["consensus"]["width"],
            "consensus_Transformer_head": model["consensus"]["num_heads"],
            "groundAttention_head": model["grounding_heads"],
            "final_Transformer_head": model["final_heads"],
            "visual_length": model["visual_length"], "dropout": model["dropout"],
            "consensus_mask": model["consensus"]["masked"], "opinion_num": 3, "emotion_num": 8,
        }  # fmt: skip
        roberta = RobertaConfig(
            vocab_size=harness.VOCAB, hidden_size=text["width"],
            num_hidden_layers=text["num_layers"],
            num_attention_heads=text["num_heads"], intermediate_size=text["mlp_width"],
            max_position_embeddings=text["max_positions"], type_vocab_size=text["num_types"],
            layer_norm_eps=text["norm_eps"], hidden_dropout_prob=text["dropout"],
            attention_probs_dropout_prob=text["attention_dropout"],
        )  # fmt: skip
        self.model = peer_vccsa.VCCSA(settings, roberta)
        if state is not None:
            tensors = {name: torch.tensor(array) for name, array in state.items()}
            missing, unexpected = self.model.load_state_dict(tensors, strict=False)
            assert not unexpected, unexpected
            assert all(".pooler." in n or "loss.weight" in n or "position_ids" in n
                       for n in missing), missing  # fmt: skip
        self.model.to(device).train()
        self.forward = torch.compile(self.model) if compiled else self.model
        self.autocast = compiled
        self.optimizer = peer_vccsa.make_optimizer(self.model, "hf", 1e-5)

    def batch(self, index_b: np.ndarray, text_len: int) -> dict[str, Any]:
        """The comments `index_b`, padded to `text_len` tokens and the whole visual length."""
        torch, corpus = self.torch, self.corpus
        tokens, features = corpus.tokens, corpus.features
        frames = self.config["model"]["visual_length"]
        ids_bl = np.full((len(index_b), text_len), 1, np.int64)
        video_btf = np.zeros((len(index_b), frames, features.width), np.float32)
        mask_bt = np.zeros((len(index_b), frames), np.int64)
        for row, index in enumerate(index_b):
            first, length = tokens.start_b[index], tokens.length_b[index]
            ids_bl[row, :length] = tokens.ids_n[first : first + length]
            found_tf = features.of(f"v{corpus.video_b[index]}")[:frames]
            video_btf[row, : len(found_tf)] = found_tf
            mask_bt[row, : len(found_tf)] = 1
        labels = {
            f"{task}_label": np.eye(size, dtype=np.float32)[corpus.labels[task][index_b]]
            for task, size in (("opinion", 3), ("emotion", 8))
        }
        found = {
            "input_ids": ids_bl, "attention_mask": (ids_bl != 1).astype(np.int64),
            "video_feat": video_btf, "video_feat_mask": mask_bt, **labels,
        }  # fmt: skip
        return {name: torch.tensor(array, device=self.device) for name, array in found.items()}

    def loss(self, batch: dict[str, Any]) -> float:
        """Total loss of a batch without dropout."""
        self.model.eval()
        with self.torch.no_grad():
            found = self.model.losses(self.model(batch), batch)["total_loss"].item()
        self.model.train()
        return found

    def run(self, prepared: list[dict[str, Any]]) -> None:
        """One update for every batch."""
        for batch in prepared:
            self.optimizer.zero_grad(set_to_none=True)
            with self.torch.autocast(self.device, self.torch.bfloat16, enabled=self.autocast):
                outputs = self.forward(batch)
            outputs = {name: value.float() for name, value in outputs.items()}
            self.model.losses(outputs, batch)["total_loss"].backward()
            self.optimizer.step()
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def peak_gib(self, batch: dict[str, Any]) -> float:
        """What PyTorch's allocator held at most over one update, parameters included."""
        torch = self.torch
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            self.run([batch])
            return torch.cuda.max_memory_allocated() / 2**30
        held = sum(p.nbytes for p in self.model.parameters())
        held += sum(
            value.nbytes
            for state in self.optimizer.state.values()
            for value in state.values()
            if torch.is_tensor(value)
        )
        with torch.profiler.profile(profile_memory=True) as profile:
            self.run([batch])
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        total = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            total += event.nbytes()
            peak = max(peak, total)
        return (held + peak) / 2**30
