"""What every room stands on: errors, files, configuration, shapes, mesh; it knows no model."""
