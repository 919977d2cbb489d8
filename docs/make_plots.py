"""Makes the plots of `docs/evaluation.md`, and `docs/report-page.png`.

    python docs/make_plots.py RUN [--budgets 40%,60%,100%] [--output FOLDER]

RUN is the folder of the evaluation, docs/evaluation.md has its commands. The page's
picture needs playwright and a Chromium, which is looked for on the machine.
"""

import shutil
import tempfile
from pathlib import Path

import click
from make_status_page import browsing, find_browser

from mlx_budget.evaluate.folder import read_records, read_settings
from mlx_budget.evaluate.page import write_page
from mlx_budget.evaluate.plots import (
    ACCURACY_FILE,
    DIFFICULTY_FILE,
    LENGTH_FILE,
    by_strategy,
    draw,
    main_strategies,
)
from mlx_budget.evaluate.summary import summarize

SIZE = {"width": 1280, "height": 4000}
DOCS = Path(__file__).parent
NAMES = {
    ACCURACY_FILE: "evaluation{}.png",
    LENGTH_FILE: "evaluation-length{}.png",
    DIFFICULTY_FILE: "evaluation-difficulty.png",
}


@click.command()
@click.argument("run", type=Path)
@click.option("--budgets", default="40%,60%,100%", show_default=True)
@click.option("--output", type=Path, default=DOCS)
def main(run: Path, budgets: str, output: Path) -> None:
    """Draws the three strategies that are shown by default, and then all."""
    kept = {None, 0, *budgets.split(",")}
    records = [r for r in read_records(run) if r["budget"] in kept]
    summary = summarize(records, read_settings(run))
    with tempfile.TemporaryDirectory() as folder:
        for suffix, names in (("", None), ("-all", list(by_strategy(summary["arms"])))):
            for file in draw(Path(folder), records, summary, names):
                if file.name in NAMES:
                    shutil.copy(file, output / NAMES[file.name].format(suffix))
        if find_browser() is None:
            click.echo("There is no Chromium: report-page.png is not made.", err=True)
            return
        few = [r for r in records if r["strategy"] in main_strategies(summary["arms"])]
        file = write_page(Path(folder), few, summarize(few, read_settings(run)))
        with browsing(viewport=SIZE, color_scheme="light") as page:
            page.goto(file.as_uri())
            page.locator(".question summary").first.click()
            page.locator(".reply").first.wait_for()
            # Down to the question that is open.
            box = page.locator(".question").first.bounding_box()
            page.set_viewport_size(
                {**SIZE, "height": int(box["y"] + box["height"]) + 8}
            )
            page.evaluate("window.scrollTo(0, 0)")
            page.screenshot(path=output / "report-page.png")


if __name__ == "__main__":
    main()
