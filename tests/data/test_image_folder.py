import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image

from diffusion_lightning import ScoreModule, UNet
from diffusion_lightning.data import ImageFolder
from diffusion_lightning.data.loader import useful_workers
from diffusion_lightning.data.pictures import PictureFiles, find_pictures, read_picture, search


def picture(height=8, width=8, mode="RGB", seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def save(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


@pytest.fixture
def classes(tmp_path):
    """Sixty 8×8 pictures in the classes 'cat' and 'dog', some of them nested deeper."""
    for i in range(60):
        place = ("cat", "dog", "dog/old")[i % 3]
        save(tmp_path / place / f"{i:02}.png", picture(seed=i))
    return tmp_path


def tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def split(data):
    """The names of the training pictures and of the held-out ones."""
    names, train = list(data._folder.names), data._folder.train
    return names[:train], names[train:]


def everything(data):
    return [data.train_images[range(len(data.train_images))], data.held_out_images[range(len(data.held_out_images))]]


# --- one picture ----------------------------------------------------------------------------------------------------


def test_a_picture_of_the_right_size_is_taken_as_it_is(tmp_path):
    save(tmp_path / "a.png", picture())
    assert torch.equal(read_picture(tmp_path / "a.png", 8, 3), tensor(picture()))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "1", "CMYK"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_mode_becomes_the_channels_asked_for(mode, channels, tmp_path):
    image = picture(mode=mode)
    save(tmp_path / "a.tif", image)
    read = read_picture(tmp_path / "a.tif", 8, channels)
    expected = np.array(image.convert("L" if channels == 1 else "RGB")).reshape(8, 8, channels)
    assert read.dtype == torch.uint8
    assert torch.equal(read, torch.from_numpy(expected).permute(2, 0, 1))


def test_transparency_is_dropped_without_a_word(tmp_path):
    image = picture(mode="P")
    image.save(tmp_path / "a.png", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(read_picture(tmp_path / "a.png", 8, 3), tensor(image.convert("RGB")))


SUFFIXES = "png jpg jpeg jfif jpe bmp webp gif tif tiff avif ppm pgm jp2 tga qoi PNG JPE"


@pytest.mark.parametrize("suffix", SUFFIXES.split())
def test_every_format_is_found_and_read(suffix, tmp_path):
    save(tmp_path / f"a.{suffix}", Image.new("RGB", (8, 8), (200, 200, 200)).convert("L" if suffix == "pgm" else "RGB"))
    assert find_pictures(tmp_path) == [f"a.{suffix}"]
    assert (read_picture(tmp_path / f"a.{suffix}", 8, 3).int() - 200).abs().max() <= 2


def test_the_shorter_side_is_resized_and_the_centre_kept(tmp_path):
    # Columns of four colours, 16 pixels wide each; the centre 32 of 64 columns are the middle two.
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0]], dtype=torch.uint8)
    wide = colours.repeat_interleave(16, 0).expand(32, 64, 3)
    save(tmp_path / "wide.png", Image.fromarray(wide.contiguous().numpy()))
    save(tmp_path / "tall.png", Image.fromarray(wide.transpose(0, 1).contiguous().numpy()))
    half = read_picture(tmp_path / "wide.png", 16, 3)
    assert half.shape == (3, 16, 16)
    # Interpolation blends the two columns beside the edges; the rest is pure.
    assert (half[:, :, 2:6].float() - colours[1].view(3, 1, 1)).abs().max() <= 2
    assert (half[:, :, 10:14].float() - colours[2].view(3, 1, 1)).abs().max() <= 2
    assert torch.equal(read_picture(tmp_path / "tall.png", 16, 3), half.transpose(1, 2))


def test_resizing_averages_what_it_cannot_show(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "board.png", Image.fromarray(board))
    small = read_picture(tmp_path / "board.png", 8, 1).float()
    assert (small - 127.5).abs().max() < 10  # without antialiasing it is all black or all white


def test_small_pictures_are_enlarged(tmp_path):
    save(tmp_path / "a.png", Image.new("RGB", (3, 5), (7, 8, 9)))
    assert torch.equal(
        read_picture(tmp_path / "a.png", 16, 3), torch.tensor([7, 8, 9]).byte().view(3, 1, 1).expand(3, 16, 16)
    )


def test_a_rotated_photograph_is_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: display it a quarter turn clockwise
    stored = Image.new("L", (16, 16))
    stored.paste(255, (0, 0, 16, 8))
    stored.save(tmp_path / "a.jpg", exif=exif, quality=100)
    upright = read_picture(tmp_path / "a.jpg", 16, 1).float()
    assert upright[0, :, 9:].min() > 200
    assert upright[0, :, :7].max() < 50


# --- a folder -------------------------------------------------------------------------------------------------------


def test_known_before_setup(classes):
    data = ImageFolder(str(classes), image_size=16, channels=1, batch_size=4)
    assert (data.shape, data.num_classes, data.fid_feature) == ((1, 16, 16), 2, "inception")
    assert data.flip is False


def test_labels_are_the_first_level_folders(classes):
    data = ImageFolder(str(classes), image_size=8)
    seen = {}
    for images, labels in everything(data):
        for image, label in zip(images, labels, strict=True):
            seen[image.numpy().tobytes()] = label.item()
    assert seen == {tensor(picture(seed=i)).contiguous().numpy().tobytes(): min(i % 3, 1) for i in range(60)}


def test_one_picture_outside_means_no_classes(classes):
    save(classes / "stray.png", picture())
    data = ImageFolder(str(classes), image_size=8)
    assert data.num_classes == 1
    assert all(not labels.any() for _, labels in everything(data))
    assert sum(len(labels) for _, labels in everything(data)) == 61


def test_hidden_and_other_files_are_left_out(classes):
    (classes / "cat" / "._00.png").write_bytes(b"not a picture")
    (classes / ".cache").mkdir()
    (classes / ".cache" / "thumb.png").write_bytes(b"not a picture")
    (classes / "notes.txt").write_text("hello")
    assert len(find_pictures(classes)) == 60


def names(data):
    """The number of each picture of the two sets, by its content."""
    number = {tensor(picture(seed=i)).contiguous().numpy().tobytes(): i for i in range(60)}
    return [[number[image.numpy().tobytes()] for image in images] for images, _ in everything(data)]


def test_the_split_is_disjoint_whole_and_the_same_in_every_run(classes):
    train, held_out = names(ImageFolder(str(classes), image_size=8, val_fraction=0.2))
    assert len(held_out) == 12
    assert sorted(train + held_out) == list(range(60))
    assert [train, held_out] == names(ImageFolder(str(classes), image_size=8, val_fraction=0.2, seed=5))
    # Pinned: an update of the package must not move pictures from one set to the other.
    assert held_out == [9, 21, 30, 42, 10, 19, 31, 37, 49, 52, 20, 32]
    assert set(names(ImageFolder(str(classes), image_size=8, val_fraction=0.1))[1]) < set(held_out)


def test_at_least_one_picture_is_held_out_and_one_trained_on(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.png", picture(seed=i))
    for fraction in (0.01, 0.99):
        data = ImageFolder(str(tmp_path), val_fraction=fraction)
        assert (len(data.train_images), len(data.held_out_images)) == (1, 1)
    (tmp_path / "0.png").unlink()
    with pytest.raises(ValueError, match="single picture"):
        ImageFolder(str(tmp_path)).setup()


@pytest.mark.parametrize(
    ("folders", "chosen"), [(("train", "test"), "test"), (("train", "val"), "val"), (("train", "val", "test"), "val")]
)
def test_folders_for_training_and_holding_out_are_the_split(folders, chosen, tmp_path):
    for folder in folders:
        for label in ("b", "a"):
            save(tmp_path / folder / label / "x.png", picture(seed=len(folder) + ord(label)))
    data = ImageFolder(str(tmp_path), image_size=8)
    assert data.num_classes == 2
    for (images, labels), folder in zip(everything(data), ("train", chosen), strict=True):
        assert labels.tolist() == [0, 1]
        assert torch.equal(images, torch.stack([tensor(picture(seed=len(folder) + ord(c))) for c in "ab"]))


def test_a_class_called_train_is_a_class(tmp_path):
    for label in ("train", "plane"):
        for i in range(3):
            save(tmp_path / label / f"{i}.png", picture(seed=i))
    data = ImageFolder(str(tmp_path))
    assert data.num_classes == 2
    assert len(data.train_images) + len(data.held_out_images) == 6


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_on_disk_give_what_pictures_in_memory_give(classes, workers):
    memory = ImageFolder(str(classes), image_size=12, batch_size=7, in_memory=True)
    disk = ImageFolder(str(classes), image_size=12, batch_size=7, in_memory=False, num_workers=workers)
    assert not hasattr(disk.train_images, "images")
    for left, right in (
        (memory.train_dataloader(), disk.train_dataloader()),
        (memory.val_dataloader(), disk.val_dataloader()),
    ):
        for (x, a), (y, b) in zip(left, right, strict=True):
            assert torch.equal(x, y)
            assert torch.equal(a, b)
    reference = torch.cat(list(disk.fid_reference()))
    assert torch.equal(reference, memory.train_images.images)
    assert torch.equal(reference, torch.cat(list(memory.fid_reference())))
    assert memory.fingerprint() == disk.fingerprint()


def test_small_sets_are_held_in_memory_unless_told_otherwise(classes, monkeypatch):
    assert hasattr(ImageFolder(str(classes), image_size=8).train_images, "images")
    monkeypatch.setattr("diffusion_lightning.data.pictures.IN_MEMORY_BYTES", 60 * 3 * 8 * 8)
    assert not hasattr(ImageFolder(str(classes), image_size=8).train_images, "images")
    assert hasattr(ImageFolder(str(classes), image_size=8, channels=1).train_images, "images")


def test_fingerprint_follows_the_files_and_the_settings(classes):
    def fingerprint(**kwargs):
        return ImageFolder(str(classes), **({"image_size": 8} | kwargs)).fingerprint()

    first = fingerprint()
    assert first == fingerprint(batch_size=3, flip=True)
    assert first != fingerprint(image_size=16)
    assert first != fingerprint(channels=1)
    assert first != fingerprint(val_fraction=0.5)
    data = ImageFolder(str(classes), image_size=8)
    path = classes / split(data)[0][0]
    pixels = np.array(Image.open(path))
    pixels[3, 3, 1] ^= 1
    before = path.stat()
    Image.fromarray(pixels).save(path)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000))
    assert first != fingerprint()


# --- what a folder holds ---------------------------------------------------------------------------------------------


def test_files_that_pillow_names_but_cannot_decode_are_no_pictures(tmp_path):
    for name in ("a.h5", "b.mpg", "c.fits", "d.eps", "e.pfm", "f.svg", "g"):
        (tmp_path / name).write_bytes(b"anything")
    save(tmp_path / "z.png", picture())
    kinds = {suffix: 1 for suffix in (".h5", ".mpg", ".fits", ".eps", ".pfm", ".svg", "")}
    assert search(tmp_path) == (["z.png"], kinds)


def test_no_folder_is_searched_twice(tmp_path):
    root = tmp_path / "root"
    for i in range(3):
        save(root / "cat" / f"{i}.png", picture(seed=i))
    save(tmp_path / "elsewhere" / "x.png", picture())
    (root / "cat" / "up").symlink_to(root, target_is_directory=True)
    (root / "cat" / "farther").symlink_to(tmp_path, target_is_directory=True)
    (root / "alias").symlink_to(root / "cat", target_is_directory=True)  # sorted before what it stands for
    (tmp_path / "elsewhere" / "back").symlink_to(root, target_is_directory=True)
    assert find_pictures(root) == ["cat/0.png", "cat/1.png", "cat/2.png"]
    (root / "dog").symlink_to(tmp_path / "elsewhere", target_is_directory=True)  # as people put sets together
    (root / "dog_again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert find_pictures(root) == ["cat/0.png", "cat/1.png", "cat/2.png", "dog/x.png"]
    assert ImageFolder(str(root)).class_names == ["cat", "dog"]


@pytest.mark.parametrize("held_out", ["valid", "validation", "dev", "eval", "Val", "TEST", "testing"])
@pytest.mark.parametrize("train", ["train", "Training"])
def test_folders_of_every_name_for_training_and_holding_out(train, held_out, tmp_path):
    for folder in (train, held_out):
        for label in ("a", "b"):
            save(tmp_path / folder / label / "x.png", picture(seed=len(folder)))
    data = ImageFolder(str(tmp_path))
    assert data.class_names == ["a", "b"]
    assert split(data) == ([f"{train}/a/x.png", f"{train}/b/x.png"], [f"{held_out}/a/x.png", f"{held_out}/b/x.png"])


@pytest.mark.parametrize(
    ("folders", "named"),
    [(("train", "Training", "val"), "Training and train"), (("train", "dev", "val", "test"), "dev and val")],
)
def test_two_folders_that_could_be_it_are_not_chosen_from(folders, named, tmp_path):
    for folder in folders:
        save(tmp_path / folder / "x.png", picture())
    with pytest.raises(ValueError, match=f"has the folders {named}, each of which may be the one to .*: keep one"):
        ImageFolder(str(tmp_path)).setup()


def test_a_folder_train_alone_is_no_class(tmp_path):
    for label in ("cat", "dog"):
        for i in range(3):
            save(tmp_path / "train" / label / f"{i}.png", picture(seed=i))
    data = ImageFolder(str(tmp_path))
    assert (data.class_names, data.num_classes) == (["cat", "dog"], 2)
    assert (len(data.train_images), len(data.held_out_images)) == (5, 1)


def test_what_was_found_is_one_line(classes):
    for name in ("notes.txt", "list.TXT", "cat/README"):
        (classes / name).write_text("hello")
    data = ImageFolder(str(classes))
    counts = torch.bincount(data.train_images.labels).tolist()
    assert data.found() == (
        f"ImageFolder {str(classes)!r}: 57 pictures to train on, 3 held out (val_fraction=0.05); 2 classes, "
        f"trained on: cat {counts[0]}, dog {counts[1]}; ignored: 2 .txt, 1 without a suffix"
    )
    assert data.class_counts() == counts


def test_what_was_found_in_folders_for_training_and_holding_out(tmp_path):
    for folder in ("train", "valid", "test"):
        for i in range(12):
            save(tmp_path / folder / f"class{i:02}" / "x.png", picture())
    save(tmp_path / "stray.png", picture())
    (tmp_path / "train" / "a.heic").touch()
    line = ImageFolder(str(tmp_path)).found()
    assert "12 pictures to train on, 12 held out (folder valid); 12 classes, trained on: class00 1, class01 1," in line
    assert line.endswith("class09 1 and 2 more; ignored: 1 .png, 1 .heic; folders not read: test")


def test_what_was_found_is_said_when_a_training_starts(classes, make_module, make_trainer, caplog):
    network = {"in_channels": 3, "channels": (4,), "num_res_blocks": 1, "embed_dim": 8, "middle_attention": False}
    module, data = make_module(network=UNet(**network)), ImageFolder(str(classes), image_size=8, batch_size=8)
    trainer = make_trainer(limit_train_batches=1, limit_val_batches=1)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        trainer.fit(module, datamodule=data)
        assert [message for message in caplog.messages if message.startswith("ImageFolder ")] == [data.found()]
        caplog.clear()
        trainer.validate(module, datamodule=data, verbose=False)
        assert not [message for message in caplog.messages if message.startswith("ImageFolder ")]
    # a run on folders keeps their names
    assert module.class_names == ["cat", "dog"]
    trainer.save_checkpoint(classes / "last.ckpt")
    assert ScoreModule.load_from_checkpoint(classes / "last.ckpt").class_names == ["cat", "dog"]


def test_names_that_are_no_text_are_split_as_ever(tmp_path):
    for name in (b"\xff.png", b"\xfe.png", "é.png".encode(), b"z.png", b"a/\xff.png", b"a-b.png"):
        path = os.path.join(os.fsencode(tmp_path), name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        picture().save(os.fsdecode(path))
    names = [os.fsdecode(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png")]
    by_hash = sorted(names, key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    for fraction in (0.01, 0.5, 0.99):
        train, held_out = split(ImageFolder(str(tmp_path), val_fraction=fraction))
        count = min(max(round(fraction * 6), 1), 5)
        assert held_out == sorted(by_hash[:count])
        assert train == sorted(by_hash[count:])


def test_the_digest_is_of_names_sizes_and_times(tmp_path):
    for name in ("b.png", "a/c.png", "a/d.png"):
        save(tmp_path / name, picture())
        os.utime(tmp_path / name, ns=(10**18, 10**18 + 7))
    data = ImageFolder(str(tmp_path), image_size=8)
    # written out: an update of the package must not lose what is kept under it
    text = repr((3, 8, 8)) + "".join(
        f"{name}\0{(tmp_path / name).stat().st_size}\0{10**18 + 7}\n" for name in split(data)[0]
    )
    assert data.fingerprint() == hashlib.sha256(text.encode()).hexdigest()[:16]


# --- workers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def on_cpus(monkeypatch):
    """Says how many CPUs this process may use."""

    def use(count, **slurm):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(count)))
        for name in ("SLURM_NTASKS", "SLURM_CPUS_PER_TASK"):
            monkeypatch.delenv(name, raising=False)
        for name, value in slurm.items():
            monkeypatch.setenv(f"SLURM_{name}", value)

    return use


def test_pictures_on_disk_are_read_by_as_many_workers_as_there_are_cpus(classes, on_cpus):
    on_cpus(3)
    disk, memory = (ImageFolder(str(classes), in_memory=in_memory, batch_size=8) for in_memory in (False, True))
    assert (disk.num_workers, memory.num_workers) == (3, 0)
    for data in (disk, memory):
        loaders = (data.train_dataloader(), data.val_dataloader())
        assert [loader.num_workers for loader in loaders] == [data.num_workers] * 2
    assert disk.found() == f"{memory.found()}; read from the disk by 3 workers"
    on_cpus(100)
    assert ImageFolder(str(classes), in_memory=False).num_workers == 8
    on_cpus(1)
    assert ImageFolder(str(classes), in_memory=False).found().endswith("read from the disk by 1 worker")


@pytest.mark.parametrize("number", [0, 5])
def test_a_number_of_workers_that_is_given_holds(classes, on_cpus, number):
    on_cpus(3)
    for in_memory in (False, True):
        assert ImageFolder(str(classes), in_memory=in_memory, num_workers=number).num_workers == number
    data = ImageFolder(str(classes), in_memory=False, num_workers=number)
    assert data.found().endswith(f"read from the disk by {number or 'no'} workers")


@pytest.mark.parametrize(("processes", "machines", "workers"), [(2, 1, 5), (3, 1, 3), (4, 2, 5), (16, 1, 0)])
def test_the_processes_of_a_machine_share_its_cpus(classes, on_cpus, processes, machines, workers):
    on_cpus(10)
    data = ImageFolder(str(classes), in_memory=False)
    data.trainer = Trainer(
        accelerator="cpu", devices=processes // machines, num_nodes=machines, strategy="ddp", logger=False
    )
    assert data.num_workers == workers
    assert data.found().endswith(f"read from the disk by {workers or 'no'} workers for each process")


def test_the_tasks_of_slurm_have_cpus_of_their_own(on_cpus):
    on_cpus(4, NTASKS="8", CPUS_PER_TASK="4")
    assert useful_workers(8) == 4
    on_cpus(32, NTASKS="8", CPUS_PER_TASK="4")  # which are not bound to them
    assert useful_workers(8) == 4
    on_cpus(32, NTASKS="1", CPUS_PER_TASK="32")  # one task, whose processes are Lightning's
    assert useful_workers(8) == 4


def test_images_on_the_device_have_no_workers(classes):
    assert ImageFolder(str(classes), on_device=True).num_workers == 0
    with pytest.raises(ValueError, match="on_device=True needs num_workers=0, got 2"):
        ImageFolder(str(classes), on_device=True, num_workers=2)
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        ImageFolder(str(classes), num_workers=-1)


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1, got 0"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"val_fraction": 0.0}, "val_fraction must be between 0 and 1.*got 0.0"),
        ({"val_fraction": 1.0}, "val_fraction must be between 0 and 1.*got 1.0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ],
)
def test_arguments_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        ImageFolder("pictures", **arguments)


def test_a_folder_that_is_not_there(tmp_path):
    root = tmp_path / "nowhere"
    with pytest.raises(FileNotFoundError, match="is not a folder") as error:
        ImageFolder(str(root)).setup()
    assert f"data.root={str(root)!r}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("folders", [[], ["train", "test"]])
def test_a_folder_without_pictures(folders, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=r"no pictures.*png, jpg") as error:
        ImageFolder(str(tmp_path)).setup()
    assert f"data.root={str(tmp_path)!r}" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_damaged_picture_is_named(classes, in_memory):
    damaged = classes / "cat" / "00.png"
    damaged.write_bytes(damaged.read_bytes()[:60])
    data = ImageFolder(str(classes), in_memory=in_memory)
    with pytest.raises(OSError, match=r"cannot read the picture .*cat.00\.png") as error:
        everything(data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("in_memory", [True, False])
def test_all_pictures_that_cannot_be_read_are_named_before_a_run_begins(classes, in_memory):
    data = ImageFolder(str(classes), in_memory=in_memory)
    train, held_out = split(data)
    for name in (*train[:2], *held_out[:2]):  # in both parts
        (classes / name).write_bytes((classes / name).read_bytes()[:60])
    (classes / train[2]).write_bytes(b"no picture")
    with pytest.raises(OSError, match=r"^cannot read 5 pictures in .*; replace or remove them$") as error:
        data.prepare_data() if not in_memory else data.setup()
    assert all(Path(name).name in str(error.value) for name in (*train[:3], *held_out[:2]))
    for name in train[3:8]:
        (classes / name).write_bytes(b"")
    with pytest.raises(OSError, match=r"^cannot read 10 pictures in .* and 5 more; replace or remove them$") as error:
        data.prepare_data() if not in_memory else data.setup()
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500 + len(str(classes))


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif"])
def test_a_picture_with_something_behind_it_is_one_and_a_part_of_one_is_not(suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    save(path, picture(32, 32))
    files = PictureFiles([path], torch.zeros(1, dtype=torch.int64), 8, 3)
    whole = path.read_bytes()
    path.write_bytes(whole + b"a camera's own")
    assert files.sizes() == [(32, 32)]
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(OSError, match=r"cannot read the picture .*a\.\w+: .*; replace or remove it"):
        files.sizes()


def test_sixteen_bit_pictures_are_refused_not_clipped(tmp_path):
    Image.fromarray(np.full((8, 8), 3000, np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(OSError, match=r"a.png: .*not 8-bit"):
        read_picture(tmp_path / "a.png", 8, 1)
