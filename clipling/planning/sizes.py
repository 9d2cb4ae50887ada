"""How many bytes a recipe leaves on disk and holds in memory, as formulas of the number of pairs. tests/planning compares them with
real banks, tables and checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

# Of Flickr8k's tars: 0.25 bytes of JPEG a pixel, and 3.5 kB a pair of headers, padding and captions.
JPEG_BYTES_PER_PIXEL = 0.25
TAR_BYTES = 3_500
PACKED_SIDE = 256  # pixels, of `data pack`
DECODED_LIMIT = 16 * 2**30  # data/pixels.py: a source that would take more is decoded at every step
# Python's objects of a pair (key, hash, group, picture's place) and of a caption with its tokens: measured, tests/planning.
PAIR_OBJECTS = 700
CAPTION_OBJECTS = 150
TOKEN_BYTES = 4  # of each of a context; fewer where all captions are shorter
SCORE_BYTES, TILE = 2**23, 2048  # guides/candidates.py, guides/columns.py
FOUND_BYTES, SEARCH_BYTES = 450, 2**27  # of every pair, and at once, while neighbours are searched
PROCESS_BYTES = 1.0e9  # Python, torch and its libraries
RECORD_BYTES, OPENING_BYTES = 100, 500  # of an augmentation, held and while a reinforced source is opened (docs/reinforced.md)
BEFORE_TRAINING = ("search of neighbours", "opening stored knowledge")  # what memory() counts that is gone when training begins
PAIRS_FILE_ROW = 130  # key, two digests and a count in parquet; digests do not compress


@dataclass(frozen=True)
class Shape:
    """What sizes depend on, apart from the number of pairs.

    captions: a pair. parameters: of the student with its token rows; heads: of the terms. image_dim, text_dim: of the bank, 0
    without a guide. crops: whether pictures are held larger than they are seen. sample_bytes: activations of one pair in training.
    stored_bytes: what teachers left beside a pair; augmentations, synthetic: how many crops and synthetic captions of it there are.
    """

    parameters: int
    heads: int
    image_size: int
    context_length: int
    batch: int
    sample_bytes: float
    captions: float = 1.0
    crops: bool = True
    ema: bool = False
    image_dim: int = 0
    text_dim: int = 0
    views: int = 0
    k: int = 0
    by_caption: bool = False
    stored_bytes: float = 0.0
    augmentations: int = 0
    synthetic: float = 0.0
    picture_bytes: float = JPEG_BYTES_PER_PIXEL * PACKED_SIDE**2 + TAR_BYTES

    @property
    def guided(self) -> bool:
        return self.image_dim > 0


def disk(shape: Shape, pairs: int) -> dict[str, float]:
    """Bytes of everything that a training needs on disk, by what it is."""
    found = {"pictures": pairs * shape.picture_bytes, "decoded pictures": decoded(shape, pairs)}
    if shape.stored_bytes:
        found["stored knowledge"] = pairs * shape.stored_bytes
    if shape.guided:
        found |= {"bank": bank(shape, pairs), "neighbour tables": tables(shape, pairs)}
        # Of the space that is searched, in fp16 and in bf16, until its table is there.
        found["columns of the search"] = 4.0 * max(shape.image_dim, shape.text_dim) * pairs
    return {**found, "checkpoints": checkpoints(shape)}


def decoded(shape: Shape, pairs: int) -> float:
    """The cache of decoded pictures; 0 where a source is too large for it."""
    side = round(shape.image_size * 1.25) if shape.crops else shape.image_size
    wanted = pairs * (3 * side**2 + 8)
    return wanted if pairs * 3 * side**2 <= DECODED_LIMIT else 0.0


def bank(shape: Shape, pairs: int) -> float:
    """fp16 rows of pictures, captions and views, `valid`, and the file of the pairs."""
    captions = pairs * shape.captions
    rows = 2 * shape.image_dim * pairs * (1 + shape.views) + 2 * shape.text_dim * captions
    return rows + pairs * (1 + PAIRS_FILE_ROW)


def tables(shape: Shape, pairs: int) -> float:
    """Two tables of k neighbours: a number (int64) and a similarity (float64) each."""
    rows = pairs + pairs * (shape.captions if shape.by_caption else 1)
    return rows * shape.k * 16


def checkpoints(shape: Shape) -> float:
    """Two checkpoints of weights and AdamW's two moments (and one more while it is written), the best weights and the model."""
    trained = shape.parameters + shape.heads
    each = 4 * (3 * trained + (shape.parameters if shape.ema else 0))
    return 3 * each + 2 * 4 * shape.parameters


def memory(shape: Shape, pairs: int) -> dict[str, float]:
    """Bytes of RAM of one process, by what holds them. Banks and decoded pictures are memory-mapped and need none."""
    captions = pairs * shape.captions
    found = {
        "process": PROCESS_BYTES,
        "pairs": pairs * PAIR_OBJECTS + captions * (CAPTION_OBJECTS + TOKEN_BYTES * shape.context_length),
        "order of an epoch": 3 * 8 * pairs,
    }
    if shape.stored_bytes:
        texts = pairs * shape.synthetic * (CAPTION_OBJECTS + TOKEN_BYTES * shape.context_length)
        found["stored knowledge"] = pairs * shape.augmentations * RECORD_BYTES + texts
        found["opening stored knowledge"] = pairs * shape.augmentations * (OPENING_BYTES - RECORD_BYTES)
    if shape.guided:
        # The mean captions of all pairs in fp16; of every pair what is found; columns that are kept converted, a tile of them and its
        # similarities. As measured from 30,000 to a million rows (benchmarks: neighbours). One space is searched after the other.
        widest = max(shape.image_dim, shape.text_dim)
        found["search of neighbours"] = pairs * (2 * shape.text_dim + FOUND_BYTES) + 4 * widest * TILE + SCORE_BYTES + SEARCH_BYTES
        found["neighbour tables"] = tables(shape, pairs)
    return found


def training_memory(shape: Shape) -> float:
    """Weights, gradients, AdamW's moments and the activations of a batch, on the device that trains."""
    return 16 * (shape.parameters + shape.heads) + shape.batch * shape.sample_bytes


def peak_memory(shape: Shape, pairs: int, on_device: bool) -> float:
    """Most RAM at a time: sources are opened, and neighbours searched, before training. on_device: whether training has its own memory."""
    held = memory(shape, pairs)
    fixed = sum(value for name, value in held.items() if name not in BEFORE_TRAINING)
    before = max(held.get(name, 0.0) for name in BEFORE_TRAINING)
    return fixed + max(before, 0.0 if on_device else training_memory(shape))
