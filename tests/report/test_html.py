"""The page: what it draws, that nothing of a model can act in it, and that it runs in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import bnfold
from bnfold.algebra.graph import Activation, Graph, Node
from bnfold.algebra.plan import Outcome, Plan
from bnfold.errors import Failure, UsageError
from bnfold.protocol import Protocol
from bnfold.report import html
from bnfold.report.document import Document, failed
from bnfold.report.folding import fold_document
from bnfold.report.html.charts import MOST_HISTOGRAMS, error_charts, histograms, latency_charts
from bnfold.report.html.drawing import MOST_AT_ONCE, drawing
from bnfold.verbs.benching import Timing
from bnfold.verbs.folding import FoldResult
from bnfold.verification import Row, Verification
from bnfold.verification.gate import Place
from tests.conftest import CHECKPOINTS, ROOT, Ended

BROWSER = next(
    (
        found
        for name in ("chromium", "chromium-browser", "google-chrome")
        if (found := shutil.which(name))
    ),
    None,
)
in_a_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on PATH")
ONNX = CHECKPOINTS / "placement.onnx"
HOSTILE = "</script><script>window.owned=1</script><img src=x onerror='window.owned=1'>{{7*7}}"


@pytest.fixture(scope="module")
def folded() -> FoldResult:
    return bnfold.fold(ONNX)


def network(path: Path, blocks: int, name: Callable[[int, str], str]) -> Path:
    """x [1, 3, 8, 8] through `blocks` of convolution, BatchNorm and ReLU; then a BatchNorm that
    stays, for a ReLU is before it and nothing after. `name` names a node of a block."""
    rng = np.random.default_rng(0)
    nodes, weights, x = [], [], "x"

    def constant(values: Any) -> str:
        weights.append(numpy_helper.from_array(np.asarray(values, np.float32), f"w{len(weights)}"))
        return weights[-1].name

    def norm() -> list[str]:
        scale, shift, mean = rng.normal(size=(3, 3))
        return [constant(v) for v in (scale, shift, mean, rng.uniform(0.5, 2, 3))]

    for block in range(blocks):
        inputs: dict[str, list[str]] = {
            "Conv": [constant(rng.normal(size=(3, 3, 1, 1)))],
            "BatchNormalization": norm(),
            "Relu": [],
        }
        for kind, parameters in inputs.items():
            made = f"v{len(nodes)}"
            nodes.append(helper.make_node(kind, [x, *parameters], [made], name(block, kind)))
            x = made
    nodes.append(helper.make_node("BatchNormalization", [x, *norm()], ["y"], name(blocks, "last")))
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("x", "y")]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
    opset = helper.make_opsetid("", 18)
    onnx.save(helper.make_model(graph, opset_imports=[opset], ir_version=9), path)
    return path


def dotted(block: int, kind: str) -> str:
    return f"stage{block // 4}.{block}.{kind}"


def leaves(tree: list[Any]) -> Iterator[int]:
    for entry in tree:
        if isinstance(entry, int):
            yield entry
        else:
            yield from leaves(entry["inside"])


def levels(tree: list[Any]) -> Iterator[list[Any]]:
    yield tree
    for entry in tree:
        if isinstance(entry, dict):
            yield from levels(entry["inside"])


# What is drawn


def test_states_say_what_became_of_each_node(tmp_path: Path) -> None:
    result = bnfold.fold(network(tmp_path / "net.onnx", 2, dotted), verify=False)
    drawn = drawing(result.plan)
    states = {node["name"]: node["state"] for node in drawn["before"]["nodes"]}
    assert states["stage0.0.BatchNormalization"] == "folded"
    assert states["stage0.0.Conv"] == "took"
    assert states["stage0.0.Relu"] == ""
    assert states["stage0.2.last"] == "kept"
    after = {node["name"]: node["state"] for node in drawn["after"]["nodes"]}
    assert "stage0.0.BatchNormalization" not in after
    assert after["stage0.2.last"] == "kept"
    assert drawn["sites"]["stage0.2.last"]["remedy"]
    assert drawn["sites"]["stage0.0.BatchNormalization"]["into"] == "stage0.0.Conv"


def test_every_node_lies_in_one_block_in_its_order(tmp_path: Path) -> None:
    for name in (dotted, lambda block, kind: f"{kind}_{block}"):
        plan = bnfold.fold(network(tmp_path / "net.onnx", 60, name), verify=False).plan
        side = drawing(plan)["before"]
        assert list(leaves(side["tree"])) == list(range(181))
        assert all(len(level) <= MOST_AT_ONCE for level in levels(side["tree"]))


def test_blocks_are_the_modules(tmp_path: Path) -> None:
    plan = bnfold.fold(network(tmp_path / "net.onnx", 8, dotted), verify=False).plan
    tree = drawing(plan)["before"]["tree"]
    names = [entry["name"] for level in levels(tree) for entry in level if isinstance(entry, dict)]
    assert {"stage0", "stage0.0", "stage1", "stage1.7"} <= set(names)


def test_a_node_without_a_module_lies_where_its_neighbours_do() -> None:
    op = Activation(np.zeros(()))
    names = ["a.one", "relu", "a.two", "add", "b.one"]
    values = ["x", *(f"v{i}" for i in range(len(names)))]
    nodes = tuple(
        Node(name, "Relu", op, (values[i],), (values[i + 1],)) for i, name in enumerate(names)
    )
    graph = Graph(("x",), nodes, (values[-1],))
    tree = drawing(Plan(graph, graph, ()))["before"]["tree"]
    assert tree == [{"name": "a", "inside": [0, 1, 2]}, 3, 4]


def test_edges_join_makers_and_readers(folded: FoldResult) -> None:
    side = drawing(folded.plan)["before"]
    names = [node["name"] for node in side["nodes"]]
    edges = {
        (names[a] if a >= 0 else side["inputs"][-1 - a].split()[0], names[b])
        for a, b in side["edges"]
    }
    assert {("input", "conv1"), ("conv1", "norm1"), ("norm1", "node_relu")} <= edges
    assert [(names[maker], value) for maker, value in side["outputs"]] == [("classifier", "output")]


def row(floor: float, error: float, why: str | None = None) -> Row:
    ratio = error / (floor or 1)
    return Row(Place("noise", "cpu", "y"), "max", floor, error, ratio, ratio / 10, None, why)


def test_errors_lie_on_a_logarithmic_axis() -> None:
    """From 1e-6, the power of ten below the least, to 1e-2, that above k times the largest."""
    chart = error_charts(
        Verification(Protocol(k=10.0), (row(1e-6, 1e-5), row(1e-4, 1e-4), row(1e-3, 0.0)))
    )[0]
    assert [(r.floor, r.error, r.limit) for r in chart.rows] == [
        (0.0, pytest.approx(0.25), pytest.approx(0.25)),
        (pytest.approx(0.5), pytest.approx(0.5), pytest.approx(0.75)),
        (pytest.approx(0.75), None, pytest.approx(1.0)),
    ]
    assert [tick.label for tick in chart.ticks] == ["1e-6", "1e-5", "1e-4", "1e-3", "1e-2"]


def test_what_is_infinite_is_said_not_drawn() -> None:
    (chart,) = error_charts(Verification(Protocol(), (row(0.0, np.inf, "infinite"),)))
    (drawn,) = chart.rows
    assert (drawn.error, drawn.said, drawn.passed) == (None, "FAIL", False)


def test_histograms_share_their_bins(folded: FoldResult) -> None:
    shown, more = histograms(folded.plan)
    assert ([each.title for each in shown], more) == (["conv3", "conv1", "linear"], 0)
    weights = {node.name: node.op.weight.load() for _, node in folded.plan.changed()}
    for each in shown:
        assert each.before is not None
        assert max(*each.before, *each.after) == 1.0
        low, high = weights[each.title].min(), weights[each.title].max()
        assert each.after_range == f"{low:.3g} to {high:.3g}"


def test_only_the_most_amplified_layers_are_shown(tmp_path: Path) -> None:
    plan = bnfold.fold(network(tmp_path / "net.onnx", 30, dotted), verify=False).plan
    shown, more = histograms(plan)
    assert (len(shown), more) == (MOST_HISTOGRAMS, 30 - MOST_HISTOGRAMS)
    loudest = max(plan.sites, key=lambda site: site.amplification or 0)
    assert shown[0].title in loudest.into


def test_latencies_share_an_axis_from_zero() -> None:
    result = bnfold.bench([ONNX, ONNX], timing=Timing(rounds=3, warmup=1, threads=1))
    (chart,) = latency_charts(result)
    assert [r.model for r in chart.rows] == ["placement.onnx", "placement.onnx (2)"]
    assert all(0 < r.low <= r.middle <= r.high < 1 for r in chart.rows)
    assert (chart.rows[0].compared == "", "times as fast" in chart.rows[1].compared) == (True, True)
    assert (chart.ticks[0].at, chart.ticks[0].label) == (0.0, "0")


# The page as text


def test_the_page_needs_nothing_beside_itself(folded: FoldResult) -> None:
    page = html.render(fold_document(folded))
    assert set(re.findall(r"https?://[^\"'\s]+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"\b(?:src|href|action)\s*=|@import|url\(", page)


def test_the_same_document_gives_the_same_page(folded: FoldResult) -> None:
    assert html.render(fold_document(folded)) == html.render(fold_document(folded))


def test_the_parts_are_there(folded: FoldResult) -> None:
    document = replace(fold_document(folded), command=("bnfold", "fold", "a model.onnx"))
    page = unescape(html.render(document))
    for said in (
        "BatchNorms folded",
        "20 → 16",
        "Every affine",
        "Weights before and after",
        "Error against the noise floor",
        "bnfold fold 'a model.onnx'",
        f"sha256sum {ONNX}",
        "onnxruntime",
    ):
        assert said in page, said
    assert page.count('class="track') == len(folded.verification.rows)  # type: ignore[union-attr]


def test_a_failure_has_a_page() -> None:
    page = html.render(failed("bnfold fold", Failure.of(UsageError("no <shape>", "add --input"))))
    assert "no &lt;shape&gt;" in page
    assert "add --input" in page
    assert html.render(Document("bnfold doctor"))


def test_names_of_a_model_are_escaped(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", 2, lambda block, kind: f"{HOSTILE}{block}{kind}")
    page = html.render(fold_document(bnfold.fold(path)))
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    assert "<img" not in page
    assert "{{7*7}}" in page


def test_a_name_does_not_turn_the_direction_of_writing(tmp_path: Path) -> None:
    """Neither in the page, nor in what its script draws."""
    path = network(tmp_path / "net.onnx", 2, lambda block, kind: f"a\u202eb{block}\u2066{kind}")
    page = html.render(fold_document(bnfold.fold(path)))
    drawn = re.findall(r'<script type="application/json">(.*?)</script>', page, re.DOTALL)
    found = [json.loads(each) for each in drawn]
    assert found[0]["before"]["nodes"][0]["name"] == "a\\u202eb0\\u2066Conv"
    texts = [page, *(json.dumps(each, ensure_ascii=False) for each in found)]
    assert not any(mark in text for mark in "\u202e\u2066" for text in texts)


def test_the_assets_are_in_the_package() -> None:
    patterns = re.search(r'"bnfold.report.html" = (\[.*\])', (ROOT / "pyproject.toml").read_text())
    assert patterns is not None
    folder = ROOT / "bnfold" / "report" / "html"
    packed = {path for pattern in json.loads(patterns[1]) for path in folder.glob(pattern)}
    assert packed == {path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("fold", ONNX, "-o", "{}/o.onnx"),
        ("inspect", ONNX, "--graph"),
        ("export", ONNX, "-o", "{}/o.onnx"),
        ("verify", ONNX, ONNX),
        ("bench", ONNX, "--folded", "--rounds", "1", "--warmup", "0"),
        ("doctor",),
    ],
    ids=lambda arguments: arguments[0],
)
def test_every_command_writes_a_page(
    bnfold: Callable[..., Ended], tmp_path: Path, arguments: tuple[Any, ...]
) -> None:
    page = tmp_path / "report.html"
    given = [str(each).format(tmp_path) for each in arguments]
    ended = bnfold(*given, "--report", page)
    assert ended.code == 0, ended
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>")
    assert f"bnfold {arguments[0]}" in text
    assert ('data-graph="' in text) == (arguments[0] not in ("verify", "doctor"))


# The page in a browser

PROBE = """<script>
const view = views.get("graph0");
const told = {};
const boxes = () => document.querySelectorAll(".item").length;
told.items = boxes();
document.querySelector("[data-do=close]").click();
told.closed = boxes();
const search = document.querySelector("input[type=search]");
search.value = NAME;
search.dispatchEvent(new Event("input"));
told.found = document.querySelectorAll(".details .link").length;
document.querySelector(".details .link").click();
told.details = document.querySelector(".details").textContent;
told.chosen = document.querySelectorAll(".item.chosen").length;
view.focus();
const press = (key) =>
  document.activeElement.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
press("ArrowUp");
told.focused = document.activeElement.getAttribute("aria-label");
press("Enter");
told.entered = document.querySelector(".details h3").textContent;
document.querySelector("[data-side=after]").click();
told.after = view.graph.nodes.length;
document.querySelector("[data-do=open]").click();
document.querySelector("[data-do=fit]").click();
document.querySelector("[data-shows]").click();
told.shown = document.querySelector(".details h3").textContent;
told.owned = window.owned ?? null;
told.wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
const said = document.createElement("pre");
said.id = "told";
said.textContent = JSON.stringify(told);
document.body.append(said);
</script></body>"""


def browse(page: Path, folder: Path, width: int = 1280) -> str:
    """The page as the browser leaves it. Fails if anything was said on its console."""
    assert BROWSER is not None
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
        *("--disable-dev-shm-usage", "--enable-logging=stderr", "--v=0"),
        *(f"--window-size={width},1600", "--dump-dom", f"--user-data-dir={folder / 'profile'}"),
    )
    command = [BROWSER, *flags, page.as_uri()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert [line for line in ended.stderr.splitlines() if "CONSOLE" in line] == []
    return ended.stdout


def probed(document: Document, name: str, folder: Path) -> Any:
    """What PROBE tells of the page, without the policy that keeps such scripts out."""
    page = re.sub(r"<meta http-equiv=.*?>", "", html.render(document))
    path = folder / "probed.html"
    path.write_text(
        page.replace("</body>", PROBE.replace("NAME", json.dumps(name).replace("</", r"<\/"))),
        "utf-8",
    )
    told = re.search(r'<pre id="told">(.*?)</pre>', browse(path, folder), re.DOTALL)
    assert told is not None
    return json.loads(unescape(told[1]))


@in_a_browser
def test_the_page_runs_under_its_own_policy(folded: FoldResult, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render(fold_document(folded)), "utf-8")
    assert browse(page, tmp_path).count('class="item') == 22 + 2


@in_a_browser
def test_the_policy_keeps_other_scripts_out(folded: FoldResult, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html.render(fold_document(folded)).replace("</body>", PROBE), "utf-8")
    with pytest.raises(AssertionError, match="violates the following Content Security"):
        browse(page, tmp_path)


@in_a_browser
def test_a_large_graph_is_searched_and_read_by_keyboard(tmp_path: Path) -> None:
    result = bnfold.fold(network(tmp_path / "net.onnx", 60, dotted), verify=False)
    told = probed(fold_document(result), "stage7.29.batch", tmp_path)
    assert told["closed"] < told["items"] < 120
    assert (told["found"], told["chosen"]) == (1, 1)
    assert "into" in told["details"]
    assert "stage7.29.Conv" in told["details"]
    assert told["focused"].startswith("stage7.29.Conv")
    assert told["entered"] == "stage7.29.Conv"
    assert told["after"] == 121
    assert told["shown"] == result.plan.sites[0].name
    assert not told["wide"]


@in_a_browser
def test_a_hostile_name_does_nothing(tmp_path: Path) -> None:
    path = network(tmp_path / "net.onnx", 2, lambda block, kind: f"{HOSTILE}{block}{kind}")
    result = bnfold.fold(path)
    assert {site.outcome for site in result.plan.sites} == {Outcome.FOLDED, Outcome.KEPT}
    told = probed(fold_document(result), f"{HOSTILE}0conv", tmp_path)
    assert told["owned"] is None
    assert f"{HOSTILE}0Conv" in told["details"]


def tiles(text: str) -> dict[str, str]:
    """Figure by label, of the cards on top."""
    found = re.findall(r'<div class="tile"><b[^>]*>(.*?)</b><span>(.*?)</span>', text)
    return {label: value for value, label in found}


def test_the_cards_have_what_folding_did(folded: FoldResult, tmp_path: Path) -> None:
    folded.save(tmp_path / "o.onnx")
    found = tiles(html.render(fold_document(folded)))
    assert found["BatchNorms folded"] == "4 of 4"
    assert found["ops"] == "20 → 16"
    assert found["size"] == "126 → 119 kB"
    assert found["multiply-adds"] == "814 → 798 k"
    assert found["verdict: the same for every input, and measured"] == "proved"
    assert folded.verification is not None
    (error,) = (value for label, value in found.items() if label.startswith("largest error beside"))
    assert error == f"{folded.verification.relative_error:.1e}"
    assert float(error) < 1e-5  # float32 has seven digits


def test_what_is_measured_alone_is_not_called_proved(folded: FoldResult) -> None:
    assert folded.verification is not None
    measured = replace(
        fold_document(folded).sections[0], verification=replace(folded.verification, proof=None)
    )
    found = tiles(html.render(Document("bnfold fold", sections=(measured,))))
    assert found["verdict: the same on 20 comparisons"] == "measured"
    wrong = replace(folded.verification, rows=(replace(folded.verification.rows[0], why="off"),))
    found = tiles(
        html.render(Document("bnfold fold", sections=(replace(measured, verification=wrong),)))
    )
    assert found["verdict, measured"] == "fail"


def test_outputs_and_netron(folded: FoldResult, tmp_path: Path) -> None:
    path = tmp_path / "a b.onnx"
    folded.save(path)
    page = html.render(fold_document(folded))
    assert "of its size</th>" in page
    assert page.count("<td>cpu unoptimised</td>") == 1
    assert f"netron &#39;{path}&#39;" in page
    assert "netron.app" in page
    assert "netron" not in html.render(Document("bnfold doctor"))


MEASURE = """<script>
const said = document.createElement("pre");
said.id = "told";
const root = document.documentElement;
const probe = document.querySelector(".card");
said.textContent = JSON.stringify({
  wide: root.scrollWidth > root.clientWidth,
  width: root.clientWidth,
  broken: [...document.querySelectorAll(".tile b")].filter(
    (b) => b.scrollWidth > b.clientWidth).length,
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  print: [...document.styleSheets[0].cssRules].filter(
    (rule) => rule.media && rule.media.mediaText === "print").length,
});
document.body.append(said);
</script></body>"""


@in_a_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_it_fits_a_desk_and_a_phone(folded: FoldResult, tmp_path: Path, width: int) -> None:
    """In a frame of that width: a headless window is no narrower than 500."""
    folded.save(tmp_path / "o.onnx")
    page = re.sub(r"<meta http-equiv=.*?>", "", html.render(fold_document(folded)))
    framed = page.replace(
        "</body>",
        MEASURE.replace("document.body.append(said)", "parent.postMessage(said.textContent, '*')"),
    )
    (tmp_path / "inner.html").write_text(framed, "utf-8")
    (tmp_path / "outer.html").write_text(
        f"""<iframe src="inner.html" width="{width}" height="1600" style="border:0"></iframe>
<script>addEventListener("message", (event) => {{
  const said = document.createElement("pre"); said.id = "told"; said.textContent = event.data;
  document.body.append(said); }})</script>""",
        "utf-8",
    )
    text = browse(tmp_path / "outer.html", tmp_path)
    told = re.search(r'<pre id="told">(.*?)</pre>', text, re.DOTALL)
    assert told is not None
    found = json.loads(unescape(told[1]))
    assert width - 20 <= found.pop("width") <= width  # but for a scroll bar
    assert found == {"wide": False, "broken": 0, "dark": False, "print": 1}
