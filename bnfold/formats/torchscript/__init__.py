"""TorchScript, as a frozen graph."""
