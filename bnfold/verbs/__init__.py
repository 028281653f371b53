"""What a user asks for: fold, export, verify, golden, bench, build."""
