"""Train the networks on handwritten digits and store them: `python -m models.train`."""

from pathlib import Path

import click
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

from models import NETWORKS, Network
from models.digits import accuracy, load_test_set, load_train_set
from models.forms import CHECKPOINTS, FORMS, Form, committed_forms, load_trained, save_forms

_SEED = 1
_EPOCHS = 20
_BATCH_SIZE = 64
_LEARNING_RATE = 1e-3


def train(network: Network) -> nn.Module:
    """Train `network` from a fixed seed and return it in evaluation mode."""
    torch.manual_seed(_SEED)
    model = network.factory()
    spread_batch_norms(model)
    batches = DataLoader(
        TensorDataset(*load_train_set(network)), batch_size=_BATCH_SIZE, shuffle=True
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=_LEARNING_RATE)
    model.train()
    for epoch in range(1, _EPOCHS + 1):
        total = 0.0
        for images, labels in batches:
            # Log-probabilities pass the log-softmax of the cross-entropy unchanged.
            loss = F.cross_entropy(model(images), labels)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        click.echo(f"{network.name}: epoch {epoch}, loss {total / len(batches):.4f}", err=True)
    return model.eval()


def spread_batch_norms(model: nn.Module) -> None:
    """Start every BatchNorm away from the identity: gamma of both signs, beta about zero."""
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.affine:
            negative = torch.randperm(module.num_features)[: module.num_features // 2]
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
            with torch.no_grad():
                module.weight[negative] *= -1


@click.command()
@click.argument("names", nargs=-1, type=click.Choice(list(NETWORKS)), metavar="[NAME]...")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=CHECKPOINTS,
    help="Folder to write to.  [default: models/checkpoints]",
)
@click.option(
    "--forms",
    multiple=True,
    type=click.Choice(FORMS),
    help="Form to write; may be repeated.  [default: the committed ones of each network]",
)
@click.option("--all-forms", is_flag=True, help="Write every form of every network.")
@click.option("--from-checkpoints", is_flag=True, help="Take the committed weights; do not train.")
def main(
    names: tuple[str, ...],
    out: Path,
    forms: tuple[Form, ...],
    all_forms: bool,
    from_checkpoints: bool,
) -> None:
    """Train the networks called NAME, or all, store them and report their test accuracy."""
    rows = []
    for name in names or NETWORKS:
        network = NETWORKS[name]
        model = load_trained(name) if from_checkpoints else train(network)
        save_forms(model, network, out, FORMS if all_forms else forms or committed_forms(name))
        rows.append((name, accuracy(model, *load_test_set(network))))
    width = max(len(name) for name, _ in rows)
    click.echo(f"{'network':{width}}  test accuracy")
    for name, share in rows:
        click.echo(f"{name:{width}}  {share:13.4f}")


if __name__ == "__main__":
    main()
