"""The page ``docs/run-format.md``, written from the table of arrays."""

from collections.abc import Iterator

from deconvoy.schema import (
    CORRESPONDENCE_ARRAYS,
    EVOLUTION_ARRAYS,
    EXAMPLE_ARRAYS,
    EXAMPLE_KINDS,
    FIRST_LAYER_ARRAYS,
    FORMAT,
    IMAGE_COLUMNS,
    INVARIANCE_ARRAYS,
    LAYER_ARRAYS,
    OCCLUSION_ARRAYS,
    OUTLIER_ARRAYS,
    PROBE_ARRAYS,
    PROBE_FEATURES,
    PROBE_SCRATCH,
    STUDY_ARRAYS,
    UNIT_OCCLUSION,
    ArrayField,
)


def as_markdown() -> str:
    """This table as the page ``docs/run-format.md``."""
    return "\n".join(_lines())


def _lines() -> Iterator[str]:
    yield "# The format of a run\n"
    yield (
        "A run is one Zarr v3 group. This page is written from `deconvoy/schema.py` by "
        "`make docs`; a test holds the two together.\n"
    )
    yield f"Format name in the root attributes: `{FORMAT}`.\n"
    yield "## Arrays of a layer, `layers/<name>/`\n"
    yield (
        "Names are percent-escaped where a path could misread them; the true name, the operation, "
        "the size and the receptive field are in the group's attributes. Every array has "
        "`dimension_names`.\n"
    )
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    for field in LAYER_ARRAYS:
        dims = ", ".join(field.dims)
        yield f"| `{field.name}` | {dims} | {field.dtype} | {field.unit} | {field.meaning} |"
    for field in EXAMPLE_ARRAYS:
        dims = ", ".join(field.dims)
        told = f"{field.meaning} (only with `{EXAMPLE_KINDS[field.name.split('_')[0]]}`)"
        yield f"| `{field.name}` | {dims} | {field.dtype} | {field.unit} | {told} |"
    for field in OUTLIER_ARRAYS:
        dims = ", ".join(field.dims)
        told = f"{field.meaning} (only with `outliers`)"
        yield f"| `{field.name}` | {dims} | {field.dtype} | {field.unit} | {told} |"
    yield _row(UNIT_OCCLUSION)
    yield (
        "\n`patch` and `projection` are stored one unit a chunk, many a Zarr shard, with a "
        "checksum each; a shard is written by one owner. `scale` and `projected` have one chunk a "
        "work item, all others one a layer.\n"
    )
    yield _OCCLUSION_PAGE
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, OCCLUSION_ARRAYS)
    yield _INVARIANCE_PAGE
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, INVARIANCE_ARRAYS)
    yield _CORRESPONDENCE_PAGE
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, CORRESPONDENCE_ARRAYS)
    yield _PROBE_PAGE
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, (*PROBE_ARRAYS, PROBE_SCRATCH, PROBE_FEATURES))
    yield _EVOLUTION_PAGE
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, EVOLUTION_ARRAYS)
    yield _STUDY_PAGE
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, STUDY_ARRAYS)
    yield "\nIn `study/<network>`, networks counted from 0:\n"
    yield "| array | dims | dtype | unit | meaning |\n|---|---|---|---|---|"
    yield from map(_row, FIRST_LAYER_ARRAYS)
    yield "\n## Images, `images/part-*.parquet`\n"
    yield "One file a shard of the data set, with one row an image.\n"
    yield "| column | type | meaning |\n|---|---|---|"
    for name, dtype, meaning in IMAGE_COLUMNS:
        yield f"| `{name}` | {dtype} | {meaning} |"
    yield _LEDGER_PAGE


def _row(field: ArrayField) -> str:
    told = f"{field.meaning} (only {field.only})" if field.only else field.meaning
    dims = ", ".join(field.dims)
    return f"| `{field.name}` | {dims} | {field.dtype} | {field.unit} | {told} |"


_OCCLUSION_PAGE = """## A grey square over images, `occlusion/`

Only with an analysis of kind occlusion. One image a chunk (`y` and `x` are whole), written by one
owner; `image` is written last. The group's attributes have `patch`, `stride` and `fill` (0–255, a
number a channel) of the square, `size` (height and width of the preprocessed image, in whose pixels
all places are), `layers` and `labels` (as of the root group), and `boxes` (the most an image has, 0
where the data has none). A layer's `occlusion` is stored one unit a chunk, some a Zarr shard.
"""

_INVARIANCE_PAGE = """
## Images moved, `invariance/`

Only with an analysis of kind invariance. One image a chunk (`transformation` and `amount` are
whole), written by one owner; `image` is written last. The group's attributes have
`transformations` (their names), `border` and `fill` (what comes in from beyond it, 0–255, a number
a channel), `size` (height and width of the preprocessed image), `layers` and `labels` (as of the
root group).
"""

_CORRESPONDENCE_PAGE = """
## Parts covered, `correspondence/`

Only with an analysis of kind correspondence. Some draws of a part a chunk, written by one owner;
`image` is whole. The group's attributes have `parts`, `layers`, `fill` (of what is covered, 0–255,
a number a channel) and `size` (height and width of the preprocessed image).
"""

_PROBE_PAGE = """
## Other classes told apart, `probe/`

Only with an analysis of kind probe. The group's attributes have the names of the axes (`weights`,
`layers`, `classifiers`, `train`), `pooled` (how each layer's maps became features), `classes` (of
the probe's images), `test` and `c`, and where the whole network was trained `recipe` (`epochs`,
`batch_size`, `learning_rate`). `features` are in `probe/<weights>/<layer>`.
"""

_EVOLUTION_PAGE = """
## Features over time, `evolution/<layer>/`

Only with an analysis of kind evolution. The attributes of `evolution` have `checkpoints` (weights
files in training order; the last is the end, the weights of the run), `layers`, and `projected` (of
these, those with pictures). `patch` and `projection` are stored one unit a chunk, many a Zarr
shard.
"""

_STUDY_PAGE = """
## Networks trained alike, `study/` and `networks/`

Only of a study, a run of its own that has no layers, hits or images. One training a chunk. The
group's attributes have `networks` (what each is, the base first), `arguments` (of their factory),
`parameters`, `repeats` and `max_filter_rms`. Weights are in
`networks/<network>/<repeat>/epoch-NNN.safetensors`; a job takes them as `model.weights`, with the
arguments as `model.arguments`.
"""

_LEDGER_PAGE = """
## Ledger, `ledger/`

One small file a finished work item: the commit marker, and for the scan the partial result.
An item is done when its marker is there, and only then.

| path | what it is |
|---|---|
| `ledger/scan/part-NNNNNN.npz` | marker of one shard: its hits, sums, examples and norms |
| `ledger/scan/prefix-NNNNNN.npz` | all shards up to and with that one, folded in shard order |
| `ledger/rescan/part-NNNNNN.npz` | marker of a part of the exact scan of candidates: its hits |
| `ledger/projection/<layer>/item-NNNNNN.json` | marker of one item: its units, its projections |
| `ledger/occlusion/item-NNNNNN.json` | marker of one image: its id, its positions of the square |
| `ledger/unit-occlusion/<layer>/item-NNNNNN.json` | marker of one item: its units, its positions |
| `ledger/invariance/item-NNNNNN.json` | marker of one image: its id, its moves |
| `ledger/correspondence/<part>/item-NNNNNN.json` | marker of some draws: which, images covered |
| `ledger/probe-features/<weights>/item-NNNNNN.json` | marker of some images of the probe |
| `ledger/probe/<weights>/item-NNNNNN.json` | marker of a layer: its name, its fits |
| `ledger/probe-scratch/item-NNNNNN.json` | marker of a network trained: images a class, fold |
| `ledger/evolution-scan/part-NNNNNN.npz` | marker of a shard: its hits at every checkpoint |
| `ledger/evolution/<layer>/item-NNNNNN.json` | marker of an item: its units, its projections |
| `ledger/study/item-NNNNNN.json` | marker of one training: network, repeat, bad images, weights |
| `ledger/study/state-NNNNNN.safetensors` | one under way: sha256, then weights, momentum, curves |
| `ledger/log.jsonl` | one line a lease granted, committed or lost, or an item taken over |
| `ledger/seal.json` | written when the run is done: the sha256 of every file without a checksum |
| `ledger/driver.lock` | held by the driver at work |
| `ledger/log-NNNNNN.jsonl`, `ledger/driver/NNNNNN.json` | in a bucket, instead of these two |

Examples are there where the top analysis asks for `bottom`, `per_class` or `bands`, and norms (of
images in each layer) where it asks for `outliers`.

The log is for people; the driver never reads it.

## Where a run can lie

All paths and bytes above are the same in a folder and below a prefix of a bucket, so a run that no
driver works on can be copied from one to the other with any tool. A bucket differs in two things,
since its objects cannot be added to and no system holds a lock on one. The log is cut into
segments; the last is written again every 5 seconds, and what a killed driver logged since is lost.
The driver is the one that created the highest number below `ledger/driver/`, by a write that the
store does only if nothing is there; it writes that object again every 15 seconds. After 60 seconds
without, by the store's clock, another may take the run over; at once if it is on the same machine
and the process is gone. Whoever finds a higher number than its own writes nothing more.

At a service, `<url>/zarr/<path>` is a file and `<url>/zarr/<folder>/` a JSON list of the names in
it.

## Attributes of the root group

`format`, `spec`, `state` (`status`: running, done, failed or stopped; `error`, `sealed`), `layers`
(names in execution order), `classes` (names of the outputs), `labels` (`true`: the data's own, or
`predicted`: it has none, so a hit's label is the predicted class), `provenance` (model and weights
sha256, fingerprint of the listing, images of each of its places, outputs, transform, batch size,
dtype, layout of maps by kind of device, devices, library versions), `results` (top-1, images read
and skipped), and of an extended run `extends` (the run before it) and `extends_sha256` (of that
run's attributes; where they have changed, its projections are computed again and not taken over).
"""
