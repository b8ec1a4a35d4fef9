"""Folders of pictures whose metadata say more of them: each picture has a colour of its own, which tells its row."""

import json

import pytest
import torch
from numbered import fit, order
from PIL import Image

from diffusion_lightning import ConditionSource, ImageFolder
from diffusion_lightning.data.tensor_images import normalize

NAMES = [f"{i:02}.png" for i in range(12)]
TEMPERATURES = [i / 8 - 0.7 for i in range(12)]
ANGLES = [-10.0 * i for i in range(12)]
KINDS = ["wild" if i % 3 else "tame" for i in range(12)]


def draw(folder, names=NAMES, first=0):
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (2, 2), first + i).save(folder / name)


def rows(names=NAMES, first=0):
    """The picture of colour i has the i-th numbers and word."""
    return [
        {"file_name": name, "temperature": TEMPERATURES[i], "kind": KINDS[i], "angle": ANGLES[i]}
        for i, name in enumerate(names, start=first)
    ]


def csv_text(table):
    return "\n".join([",".join(table[0]), *(",".join(map(str, row.values())) for row in table)]) + "\n"


def write(folder, table, kind="csv"):
    text = csv_text(table) if kind == "csv" else "".join(json.dumps(row) + "\n" for row in table)
    (folder / f"metadata.{kind}").write_text(text)


@pytest.fixture
def folder(tmp_path):
    draw(tmp_path)
    return tmp_path


def images(root, *columns, **kwargs):
    settings = {"image_size": 2, "channels": 1, "val_fraction": 0.25, "batch_size": 4, "num_workers": 0}
    condition = ConditionSource(columns=list(columns)) if columns else None
    return ImageFolder(str(root), condition=condition, **{**settings, **kwargs})


def both_parts(data):
    """All examples of both parts: their colours, and what their conditions are."""
    for examples in data.sets():
        x, condition = examples[range(len(examples))]
        yield x[:, 0, 0, 0].tolist(), condition


# --- what is read ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_each_picture_has_the_numbers_of_its_row_in_the_order_asked_for(folder, kind, in_memory):
    write(folder, rows()[::-1], kind)
    data = images(folder, "angle", "temperature", in_memory=in_memory)
    assert (data.condition_dim, data.num_classes, data.class_names) == (2, 1, None)
    seen = []
    for colours, condition in both_parts(data):
        expected = torch.tensor([[ANGLES[i], TEMPERATURES[i]] for i in colours])
        assert condition["vector"].dtype == torch.float32
        assert torch.equal(condition["vector"], expected)
        seen += colours
    assert sorted(seen) == list(range(12))


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_a_column_of_words_makes_the_classes_in_place_of_the_folders(tmp_path, kind):
    names = [f"{'left' if i < 6 else 'right'}/{name}" for i, name in enumerate(NAMES)]
    draw(tmp_path, names)
    write(tmp_path, rows(names), kind)
    assert images(tmp_path).class_names == ["left", "right"]
    data = images(tmp_path, "kind")
    assert (data.class_names, data.num_classes, data.condition_dim) == (["tame", "wild"], 2, None)
    for colours, labels in both_parts(data):
        assert labels.tolist() == [int(KINDS[i] == "wild") for i in colours]
    train = data.sets()[0].labels
    assert data.class_counts() == [(train == 0).sum(), (train == 1).sum()]
    assert data.vector_statistics() is None


def test_words_and_numbers_are_labels_and_a_vector(folder):
    write(folder, rows())
    data = images(folder, "kind", "angle")
    assert (data.class_names, data.condition_dim) == (["tame", "wild"], 1)
    for colours, condition in both_parts(data):
        assert condition["labels"].tolist() == [int(KINDS[i] == "wild") for i in colours]
        assert condition["vector"].tolist() == [[ANGLES[i]] for i in colours]
    tame, wild = data.class_counts()
    told = f"trained on: tame {tame}, wild {wild}; conditions of metadata.csv: vector: angle; classes: kind"
    assert data.found().endswith(told)


def test_without_columns_metadata_are_files_like_others(folder):
    write(folder, rows())
    data = images(folder)
    assert all(isinstance(condition, torch.Tensor) for _, condition in both_parts(data))
    assert (data.condition_dim, data.vector_statistics()) == (None, None)
    assert data.found().endswith("no classes; ignored: 1 .csv")
    data = images(folder, "angle")
    assert data.found().endswith("no classes; conditions of metadata.csv: vector: angle")


@pytest.mark.parametrize("places", [["", ""], ["train/", "val/"], ["", "val/"]])
def test_metadata_lie_in_the_root_or_with_the_parts(tmp_path, places):
    files = {}
    for part, place, first in zip(("train/", "val/"), places, (0, 8), strict=True):
        names = NAMES[first : first + (8 if part == "train/" else 4)]
        draw(tmp_path / part, names, first)
        told = [part.removeprefix(place) + name for name in names]
        files[place] = files.get(place, []) + rows(told, first)
    for place, table in files.items():
        write(tmp_path / place, table)
    data = images(tmp_path, "angle")
    for (colours, condition), expected in zip(both_parts(data), (range(8), range(8, 12)), strict=True):
        assert colours == list(expected)
        assert condition["vector"].tolist() == [[ANGLES[i]] for i in expected]
    assert "ignored" not in data.found()


def test_a_folder_that_is_for_training_alone_may_hold_its_metadata(tmp_path):
    draw(tmp_path / "train")
    write(tmp_path / "train", rows())
    assert images(tmp_path, "angle").condition_dim == 1


def test_rows_of_folders_that_are_not_read_are_left_out(tmp_path):
    for first, part in ((0, "train"), (4, "val"), (8, "test")):
        draw(tmp_path / part, NAMES[first : first + 4], first)
    table = rows([f"{('train', 'val', 'test')[i // 4]}/{name}" for i, name in enumerate(NAMES)])
    write(tmp_path, table)
    assert [colours for colours, _ in both_parts(images(tmp_path, "angle"))] == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_a_spreadsheets_csv_is_read_as_it_is_meant(tmp_path):
    """A byte order mark, CRLF, quoted cells with commas, quotes and line ends, letters beyond ASCII, empty lines."""
    draw(tmp_path, ["a,b.png", 'in/say "ä".png', "c.png"])
    text = (
        '\ufefffile_name,note, wärme \r\n"a,b.png","1\r\n2", 1.5\r\n\r\n"in/say ""ä"".png",, -2e-3\r\n./c.png,x,7\r\n'
    )
    (tmp_path / "metadata.csv").write_bytes(text.encode())
    data = images(tmp_path, "wärme", val_fraction=0.4)
    numbers = {0: 1.5, 1: -2e-3, 2: 7.0}
    for colours, condition in both_parts(data):
        assert torch.equal(condition["vector"], torch.tensor([[numbers[i]] for i in colours]))


def test_json_has_numbers_words_and_truths(tmp_path):
    draw(tmp_path, NAMES[:3])
    numbers = ["1", 2, 3.5]
    table = [{"file_name": NAMES[i], "a": numbers[i], "b": i != 1} for i in range(3)]
    write(tmp_path, table, "jsonl")
    data = images(tmp_path, "a", "b")
    assert data.class_names == ["false", "true"]
    for colours, condition in both_parts(data):
        assert condition["vector"].tolist() == [[[1.0, 2.0, 3.5][i]] for i in colours]
        assert condition["labels"].tolist() == [[1, 0, 1][i] for i in colours]


# --- what comes of it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("in_memory", "workers"), [(True, 0), (False, 0), (False, 1)])
def test_a_run_gets_each_pictures_conditions_by_name(folder, in_memory, workers):
    write(folder, rows())
    data = images(folder, "temperature", "kind", in_memory=in_memory, num_workers=workers, seed=3)
    batches = fit(data, max_epochs=1).train_batches[0]
    assert len(batches) == 2
    train = data.sets()[0]
    for (x, condition), indices in zip(batches, order(9, 4, seed=3), strict=True):
        assert condition.keys() == {"labels", "vector"}
        colours = ((x[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()
        assert torch.equal(x, normalize(train[indices][0]))
        assert condition["vector"].flatten().tolist() == torch.tensor([TEMPERATURES[i] for i in colours]).tolist()
        assert condition["labels"].tolist() == [int(KINDS[i] == "wild") for i in colours]
        # what is given as examples is what the step has got
        same, conditions = data.examples(indices, held_out=False)
        assert torch.equal(same, x)
        assert conditions.keys() == condition.keys()
        assert all(torch.equal(conditions[name], condition[name]) for name in condition)


def test_of_one_class_alone_there_are_no_labels(folder):
    write(folder, rows())
    data = images(folder, "angle")
    condition = fit(data, max_epochs=1).train_batches[0][0][1]
    assert condition.keys() == {"vector"}
    assert data.examples([0])[1].keys() == {"vector"}
    assert images(folder).examples([0])[1] == {}


def test_the_statistics_are_of_the_training_pictures_in_float64(folder):
    """Of numbers so large that float32 could not add them up."""
    big = [2.0**24 + 2 * i * i for i in range(12)]
    write(folder, [{"file_name": name, "big": big[i], "same": 3} for i, name in enumerate(NAMES)])
    data = images(folder, "big", "same")
    colours, _ = next(iter(both_parts(data)))
    chosen = torch.tensor([big[i] for i in colours], dtype=torch.float64)
    mean, std = data.vector_statistics()
    expected = ((chosen - chosen.mean()).square().mean().sqrt(), torch.tensor(0.0))
    assert (mean.dtype, std.dtype) == (torch.float32, torch.float32)
    assert mean.tolist() == [chosen.mean().float(), 3.0]
    assert std.tolist() == [each.float() for each in expected]


# --- errors ---------------------------------------------------------------------------------------------------------


def refused(root, columns, error=ValueError):
    with pytest.raises(error) as raised:
        images(root, *columns).setup()
    message = str(raised.value)
    assert "\n" not in message
    return message


HEADER = "file_name,a,b\n"
WHOLE = "".join(f"{name},{i},w{i % 2}\n" for i, name in enumerate(NAMES))


@pytest.mark.parametrize(
    ("columns", "text", "message"),
    [
        (
            ["a"],
            "a,b\n1,2\n",
            "metadata.csv has no column file_name, which tells the picture that a row is of; it has ",
        ),
        (["a"], "", "metadata.csv has no column file_name, which tells the picture that a row is of; it is empty"),
        (["c"], HEADER + WHOLE, "metadata.csv has no column 'c'; it has the columns file_name, a, b"),
        (["a"], "file_name,a,a\n", "metadata.csv has 2 columns 'a'; keep one of them"),
        (["a"], HEADER + WHOLE.replace("03.png,3", "03.png,"), "row 5 has nothing in column 'a'; give a value"),
        (
            ["a"],
            HEADER + WHOLE.replace("05.png,5", "05.png,n/a"),
            "row 7, column 'a': 'n/a' is no number, but '0' of ",
        ),
        (["a"], HEADER + WHOLE.replace("00.png,0", "00.png,x"), "row 2, column 'a': 'x' is no number, but '1' of "),
        (["a"], HEADER + WHOLE.replace("05.png,5", "05.png,nan"), "row 7, column 'a': 'nan' is no finite float32"),
        (["a"], HEADER + WHOLE.replace("05.png,5", "05.png,1e39"), "row 7, column 'a': '1e39' is no finite float32"),
        (["b", "c"], "file_name,b,c\n00.png,x,y\n", "'b' and 'c' are of words ("),
        (["a"], HEADER + WHOLE.replace("05.png,5", "05.png,5,6"), "row 7 has 4 cells, but there are 3 columns"),
        (["a"], HEADER + WHOLE + "03.png,3,w0\n", "row 14: '03.png' has a row already; keep one of them"),
        (
            ["a"],
            HEADER + WHOLE.replace("07.png,7,w1\n", ""),
            "1 picture of which metadata.csv has no row, the first is ",
        ),
        (["a"], HEADER + WHOLE.partition("06.png")[0], "6 pictures of which metadata.csv has no row, the first is "),
        (["a"], HEADER + '00.png,"1', "metadata.csv: near line 2: no CSV, unexpected end of data"),
    ],
)
def test_what_is_wrong_with_a_csv_is_one_line(folder, columns, text, message):
    (folder / "metadata.csv").write_text(text)
    assert message in refused(folder, columns)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "03.png"', "metadata.jsonl: row 4 is no JSON: "),
        ('["03.png", 3]', "metadata.jsonl: row 4 is no JSON object; give one with file_name, a"),
        ('{"a": 3}', "metadata.jsonl: row 4 has no column file_name, which tells the picture"),
        ('{"file_name": "03.png", "b": 3}', "metadata.jsonl: row 4 has no column 'a'; it has the columns file_name, b"),
        ('{"file_name": "03.png", "a": null}', "row 4 has nothing in column 'a'"),
        ('{"file_name": "03.png", "a": [1, 2]}', "row 4, column 'a': [1, 2] is neither a number nor a word"),
        ('{"file_name": "03.png", "a": NaN}', "row 4, column 'a': 'NaN' is no finite float32"),
        ('{"file_name": "03.png", "a": true}', "row 4, column 'a': 'true' is no number, but '0' of "),
    ],
)
def test_what_is_wrong_with_a_jsonl_is_one_line(folder, line, message):
    lines = [json.dumps({"file_name": name, "a": i}) for i, name in enumerate(NAMES)]
    (folder / "metadata.jsonl").write_text("\n".join([*lines[:3], line, *lines[4:]]))
    assert message in refused(folder, ["a"])


def test_pictures_that_are_not_there_are_counted(folder):
    (folder / "metadata.csv").write_text(HEADER + "elsewhere\\00.png,1,2\n" + WHOLE + "13.png,1,2\n")
    message = refused(folder, ["a"], FileNotFoundError)
    assert "has metadata of 2 pictures not found there, the first is row 2 of " in message
    assert "metadata.csv, 'elsewhere\\\\00.png': give file_name relative to the folder of the metadata" in message


def test_columns_without_any_metadata_are_refused(folder):
    message = refused(folder, ["a", "b"], FileNotFoundError)
    assert "has no metadata.csv or metadata.jsonl, which data.condition.columns=['a', 'b'] need" in message
    assert "with the columns file_name, a, b, or data.condition=null" in message


def test_one_picture_in_two_files_is_refused(tmp_path):
    draw(tmp_path / "train", NAMES[:8])
    draw(tmp_path / "val", NAMES[8:])
    write(tmp_path / "train", rows(NAMES[:8]))
    write(tmp_path, rows([f"train/{name}" for name in NAMES[:8]]))
    assert "row 2: '00.png' has a row already" in refused(tmp_path, ["angle"])


def test_a_file_that_is_not_utf8_is_refused(folder):
    (folder / "metadata.csv").write_bytes((HEADER + WHOLE).replace("w1", "ä").encode("latin-1"))
    assert "metadata.csv is not UTF-8; save it as such" in refused(folder, ["a"])
