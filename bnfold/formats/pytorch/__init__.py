"""nn.Module and ExportedProgram, checkpoints and weights."""
