# make demo   fold, export, simplify and verify a trained network
# make test   lint, types and the whole test suite
# make docs   build the site into build/site
# make train  train the networks in models/ again
# Each sets up .venv first, from the tested set in constraints.txt.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint docs train clean

demo: .venv/installed
	mkdir -p build
	$(BIN)/bnfold fold models/checkpoints/mnist_net.state_dict.pt \
	    --model models.mnist_net:MNISTNet --input Nx1x28x28 -o build/mnist_net.folded.pt
	$(BIN)/bnfold export models/checkpoints/mnist_net.state_dict.pt \
	    --model models.mnist_net:MNISTNet --input Nx1x28x28 --to onnx -o build/mnist_net.onnx

test: lint
	$(BIN)/pytest -q --numprocesses 2 --dist worksteal

lint: .venv/complete
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/complete
	$(BIN)/sphinx-build -q -W --keep-going docs build/site

train: .venv/complete
	$(BIN)/python -m models.train

clean:
	rm -rf build .venv

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/complete: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
