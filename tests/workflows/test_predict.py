def test_x(trained_run):
    print(sorted(p.name for p in trained_run.rglob("*"))[:40])
