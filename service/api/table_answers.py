"""What the routes about tables and queries answer as JSON: pages of rows."""

from typing import Any

from service.api.answers import LAYER, Answer, example_of
from service.api.image_answers import IMAGE


class TablePage(Answer):
    """Rows of a table."""

    total: int
    offset: int
    next: str | None
    rows: list[dict[str, Any]]
    summary: dict[str, Any] | None = None
    """What the table says as a whole, of queries that do."""

    model_config = example_of(
        total=2304,
        offset=0,
        next="/v1/runs/squeeze-photos/table?layer=features.12.expand3x3_activation&offset=1000",
        rows=[
            {"layer": LAYER["layer"], "unit": 42, "rank": 0, "score": 41.25, "image_id": 1203,
             "uri": IMAGE["uri"], "label": 281, "y": 4, "x": 7, "y0": 0, "x0": 15, "y1": 178,
             "x1": 224}
        ],
        summary=None,
    )  # fmt: skip


class QueryArgument(Answer):
    name: str
    type: str
    required: bool
    default: Any
    description: str


class QueryUsage(Answer):
    """A question to a run."""

    name: str
    description: str
    arguments: list[QueryArgument]
    address: str


class QueryList(Answer):
    model_config = example_of(
        queries=[
            {
                "name": "dead",
                "description": "Units that no image activates.",
                "arguments": [
                    {
                        "name": "layer",
                        "type": "str",
                        "required": False,
                        "default": None,
                        "description": "only this layer",
                    }
                ],
                "address": "/v1/runs/squeeze-photos/query/dead",
            }
        ]
    )

    queries: list[QueryUsage]
