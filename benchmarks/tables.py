"""Writes the tables of docs/performance.md, docs/results.md and benchmarks/results/README.md from benchmarks/results.

python -m benchmarks.tables [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end of table -->`. `--check` changes nothing, and exits with 1
if a page is out of date.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from benchmarks.measure import REPOSITORY, RESULTS

PAGES = ("docs/performance.md", "docs/results.md", "benchmarks/results/README.md")
MARKED = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)
FIELD = re.compile(r"\{(\w+)(\+?)\}")
INTERVAL = "{dsc} [{dsc_low}, {dsc_high}]"
COMPARED = {
    "DSC": INTERVAL, "SD of seeds": "{sd_of_seeds}", "− first": "{difference+}", "p (Holm)": "{p_holm}",
    "NSD at 2 mm": "{nsd_2mm}", "peak, GiB": "{peak_gib}",
}  # fmt: skip
RUN = "2026-11-29.csv"
"""The run of the benchmarks that the pages show; of a row that was measured again since, the newest."""

EPOCHS = "2026-12-01.csv"
"""The run of `epochs`."""


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table of a page."""

    file: str
    """Its measurements, in `benchmarks/results`."""
    columns: dict[str, str]
    """Heading of each column, and the text of its cells with `{field}`, or `{field+}` for a number with its sign."""
    rows: Callable[[dict[str, str]], bool] | None = None
    """Whether a row of the file is shown; None: all are."""

    def lines(self) -> list[str]:
        """The table in Markdown."""
        with (RESULTS / self.file).open(newline="") as file:
            rows = [_measured_again(row) if self.file == RUN else row for row in csv.DictReader(file)]
        shown = [row for row in rows if self.rows is None or self.rows(row)]
        cells = [[_filled(template, row) for template in self.columns.values()] for row in shown]
        return [_line(line) for line in (self.columns, ["---"] * len(self.columns), *cells)]


def _measured_again(row: dict[str, str]) -> dict[str, str]:
    """The newest row with the same benchmark and peer, from a file behind `RUN`; else the row itself."""
    for path in sorted(RESULTS.glob("*.csv"), reverse=True):
        if path.name <= RUN:
            break
        with path.open(newline="") as file:
            for newer in csv.DictReader(file):
                if (newer["benchmark"], newer["peer"]) == (row["benchmark"], row["peer"]):
                    return newer
    return row


def _is_peer(row: dict[str, str]) -> bool:
    return row["peer"].split()[0:1] in (["nnunetv2"], ["batchgeneratorsv2"], ["monai"]) and bool(row["theirs"])


def _has_own_bound(row: dict[str, str]) -> bool:
    return row["peer"] == "own bound" and row["unit"] in ("s", "MB", "%") and "make bench" in row["note"]


BESIDE = {"measured": "{benchmark}", "unit": "{unit}", "ours": "{ours}", "theirs": "{theirs}", "ratio": "{ratio}"}
TABLES = {
    "beside-nnunet": Table(file=RUN, columns=BESIDE, rows=_is_peer),
    "own-bounds": Table(
        file=RUN, columns={"measured": "{benchmark}", "value": "{ours} {unit}", "bound": "{theirs} {unit}"},
        rows=_has_own_bound,
    ),
    "epochs": Table(
        file=EPOCHS,
        columns={"setting": "{benchmark}", "forecast, s": "{ours}", "measured, s": "{theirs}", "ratio": "{ratio}"},
        rows=lambda row: row["benchmark"].startswith("forecast of an epoch"),
    ),
    "large-volumes": Table(
        file=RUN, columns={"measured": "{benchmark}", "MiB": "{ours}", "bound": "{theirs}"},
        rows=lambda row: row["benchmark"].endswith("one volume of 1024³") and row["peer"] == "own bound",
    ),
    "expanded-patch": Table(
        file="studies/expanded-patch.csv",
        columns={
            "expanded patch × batch": "{expanded_patch} × {batch}", "patch": "{patch}", "how": "{how}",
            "U-Net, GiB": "{unet_gib}", "meU-net, GiB": "{meunet_gib}", "ratio": "{ratio}",
            "ratio in the paper": "{published_ratio}",
        },
        rows=lambda row: bool(row["published_ratio"]) or row["how"] == "measured",
    ),
    "largest-volume": Table(
        file="studies/largest-volume.csv",
        columns={"by forecast": "{way}", "24 GiB (A10)": "{a10}³", "141 GiB (H200)": "{h200}³"},
    ),
    "pipeline-stages": Table(
        file="studies/pipeline-stages.csv",
        columns={"stages": "{stages}", "memory of each stage over one device's": "{shares}", "fullest": "{fullest}"},
    ),
    "whole-image": Table(
        file="studies/whole-image.csv",
        columns={
            "network": "{network}", "whole, s": "{whole_seconds}", "windows, s": "{windows_seconds}",
            "ratio": "{ratio}", "published": "{published_ratio}",
        },
    ),
    "nnunet-trainings": Table(
        file="studies/nnunet-trainings.csv",
        columns={
            "dataset": "{dataset}", "batch": "{batch}", "epochs × steps": "{epochs} × {iterations}", "seeds": "{seeds}",
            "cases": "{cases}", "ours": "{ours}", "SD of seeds": "{ours_sd_of_seeds}", "nnU-Net": "{theirs}",
            "SD of its seeds": "{theirs_sd_of_seeds}", "difference [95 %]": "{difference+} [{low}, {high}]",
        },
    ),
    "residual-trainings": Table(
        file="studies/residual-trainings.csv",
        columns={
            "dataset": "{dataset}", "batch": "{batch}", "epochs × steps": "{epochs} × {iterations}", "seeds": "{seeds}",
            "cases": "{cases}", "residual": "{residual}", "SD of seeds": "{residual_sd_of_seeds}", "plain": "{plain}",
            "SD of its seeds": "{plain_sd_of_seeds}", "difference [95 %]": "{difference+} [{low}, {high}]",
        },
    ),
    "demo": Table(
        file="studies/demo.csv",
        columns={
            "model": "{model}", "patch": "{patch}", "split": "{split}", "cases": "{cases}", "DSC": "{dsc} ± {dsc_sd}",
            "NSD at 2 mm": "{nsd_2mm} ± {nsd_2mm_sd}",
        },
    ),
    "fold-0": Table(
        file="studies/fold-0.csv",
        columns={
            "study": "{study}", "cases": "{training_cases} + {validation_cases}", "DSC": "{dsc} ± {dsc_sd}",
            "NSD": "{nsd} ± {nsd_sd} at {tolerance_mm} mm", "time": "{time}",
        },
    ),
    "chaos-sweep-patch": Table(file="studies/chaos-sweep-patch.csv", columns={"patch": "{setting}", **COMPARED}),
    "chaos-tiles": Table(
        file="studies/chaos-tiles.csv",
        columns={
            "run": "{setting}", "loss of epoch 1": "{loss_1}", "of epoch 5": "{loss_5}", "DSC": "{dsc}",
            "peak of a process, GiB": "{peak_gib}",
        },
    ),
    "claims": Table(
        file="studies/claims.csv",
        columns={
            "paper": "{paper}", "claim": "{claim}", "metric": "{metric}", "published": "{published_change+}",
            "measured": "{measured+}", "95 %": "{low+} to {high+}", "seeds": "{seeds}", "cases": "{cases}",
            "verdict": "{verdict}",
        },
    ),
    "vnc-class-weights": Table(
        file="studies/vnc-class-weights.csv",
        columns={
            "class weights": "{class_weights}", "weights": "{weights}", "DSC": INTERVAL,
            "− first [95 %]": "{difference+} [{difference_low}, {difference_high}]",
            "mitochondria": "{dsc_mitochondria}", "synapses": "{dsc_synapses}",
        },
    ),
    "vnc-networks": Table(
        file="studies/vnc-networks.csv",
        columns={
            "network": "{setting}", **{key: text for key, text in COMPARED.items() if "NSD" not in key},
        },
    ),
}  # fmt: skip


def with_tables(page: str) -> str:
    """The text of a page with its tables as they should be.

    Raises:
        KeyError: the page names a table that is not in `TABLES`.
    """
    return MARKED.sub(lambda found: f"{found[1]}{_text(TABLES[found[2]].lines())}{found[4]}", page)


def main() -> int:
    """Writes or checks the pages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    status = 0
    for name in PAGES:
        path = REPOSITORY / name
        wanted = with_tables(path.read_text())
        if path.read_text() == wanted:
            continue
        if check:
            print(f"{name}: its tables are out of date; run 'make bench-tables'", file=sys.stderr)
            status = 1
        else:
            path.write_text(wanted)
    return status


def _filled(template: str, row: dict[str, str]) -> str:
    """A cell; empty where all of its fields are."""
    values = [row[name] for name, _ in FIELD.findall(template)]
    if not any(values):
        return ""
    return FIELD.sub(lambda field: _number(row[field[1]], signed=bool(field[2])), template)


def _number(text: str, *, signed: bool) -> str:
    if signed and text and text[0] != "-":
        return f"+{text}"
    return text.replace("-", "−") if re.fullmatch(r"-[\d.]+", text) else text


def _line(cells: Iterable[str]) -> str:
    return " ".join(f"| {cell}" if cell else "|" for cell in cells) + " |"


def _text(lines: list[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    raise SystemExit(main())
