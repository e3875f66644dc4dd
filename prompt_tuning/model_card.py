"""The model card of a run, from the facts in its folder."""

from __future__ import annotations

import json
from pathlib import Path

import yaml
from huggingface_hub import ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from prompt_tuning.files import whole_file
from prompt_tuning.summary import read_results
from prompt_tuning.template import Template


def write_card(folder: Path) -> None:
    """README.md in a run's folder. What is not known is left out."""
    results = read_results(folder)
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    settings = yaml.safe_load(recipe)
    with (folder / "predictions" / f"{results['split']}.jsonl").open(encoding="utf-8") as rows:
        example = json.loads(next(rows))
    data = ModelCardData(
        library_name="peft",
        base_model=None if Path(results["model"]).is_dir() else results["model"],
        datasets=settings.get("dataset_name"),
        language=settings.get("lang") or settings.get("target_lang"),
        pipeline_tag=results["task"].replace("_", "-")
        if results["task"] != "question_answering"
        else "text-generation",
        tags=["prompt-tuning", results["task"].replace("_", "-")],
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("model_card_template.md").render(
        name=folder.name,
        folder=folder,
        task=results["task"].replace("_", " "),
        virtual_tokens=json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["num_virtual_tokens"],
        results=results,
        metrics=[key for key, value in results["soft_prompt"].items() if not isinstance(value, str)],
        signatures=[value for value in results["soft_prompt"].values() if isinstance(value, str)],
        columns=sorted(Template.load(folder / "template.yaml").source_columns),
        template=(folder / "template.yaml").read_text(encoding="utf-8"),
        example=example,
        recipe=recipe,
    )
    with whole_file(folder / "README.md") as file:
        file.write(f"---\n{data.to_yaml()}\n---\n\n{text}")
