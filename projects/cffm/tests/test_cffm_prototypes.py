"""Reading prototypes from folders and zips, and where the model asks for them."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from cffm_cases import clip_of, fixture_model, samples_of, tiny_model

from vss2.d2.data import DatasetCatalog
from vss2.data.image_io import write_image
from vss2.errors import InputError, InputFileError
from vss2.projects.cffm.kmeans import assign, kmeans, random_points
from vss2.projects.cffm.prototype_tool import main, prototype_frames, video_points
from vss2.projects.cffm.prototypes import PrototypeStore
from vss2.testing.fixtures import assert_recorded, load_fixture


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two videos with centers.pt, one with parts alone."""
    root = tmp_path / "cluster_centers"
    generator = torch.Generator().manual_seed(0)
    for video, names in {
        "1_a": ["centers.pt"],
        "2_b": ["centers.pt", "x.pt"],
        "3_c": ["x.pt", "y.pt"],
    }.items():
        (root / video).mkdir(parents=True)
        for name in names:
            torch.save(torch.randn(1, 10, 16, generator=generator), root / video / name)
    return root


@pytest.fixture
def videos(tmp_path: Path) -> Iterator[str]:
    """Name of a data set of two videos, "a" of 12 frames and "b" of 4."""
    dicts = []
    for seed, (video, count) in enumerate({"a": 12, "b": 4}.items()):
        frames = []
        for index, frame in enumerate(clip_of(seed, 96, 128, frames=count)):
            file = tmp_path / f"{video}_{index}.png"
            write_image(file, frame.permute(1, 2, 0).numpy())
            frames.append({"file_name": str(file), "label_file": None, "frame_index": index})
        dicts.append({"video_id": video, "frames": frames})
    DatasetCatalog.register("prototype_videos", lambda: dicts)
    yield "prototype_videos"
    DatasetCatalog.remove("prototype_videos")


@pytest.fixture
def archive(folder: Path) -> Path:
    path = folder.parent / "centers.zip"
    with zipfile.ZipFile(path, "w") as file:
        for part in sorted(folder.rglob("*.pt")):
            file.write(part, part.relative_to(folder.parent))
        file.writestr("__MACOSX/cluster_centers/9_z/._centers.pt", b"junk")
    return path


def test_a_folder_and_its_zip_hold_the_same(folder: Path, archive: Path) -> None:
    for store in (PrototypeStore(folder), PrototypeStore(archive)):
        assert store.videos() == ["1_a", "2_b", "3_c"]
        for video in ("1_a", "2_b"):
            expected = torch.load(folder / video / "centers.pt")[0]
            assert torch.equal(store[video], expected)


def test_parts_serve_by_explicit_option_only(folder: Path, archive: Path) -> None:
    with pytest.raises(InputError, match=r"video '3_c' has no centers\.pt"):
        PrototypeStore(folder)["3_c"]
    rows = torch.cat([torch.load(folder / "3_c" / name)[0] for name in ("x.pt", "y.pt")])
    drawn = PrototypeStore(folder, parts=True, seed=3)["3_c"]
    assert drawn.shape == (16, 16)
    positions = [int((rows == row).all(1).nonzero()) for row in drawn]
    assert positions == sorted(set(positions))
    assert torch.equal(drawn, PrototypeStore(archive, parts=True, seed=3)["3_c"])
    assert PrototypeStore(folder, parts=True)["2_b"].shape == (10, 16)


def test_errors_name_the_video_or_the_file(folder: Path, archive: Path) -> None:
    for path in (folder, archive):
        with pytest.raises(InputError, match=r"video '1_aa' has no .*Did you mean '1_a'"):
            PrototypeStore(path)["1_aa"]
    with pytest.raises(InputFileError, match="nowhere"):
        PrototypeStore(folder / "nowhere")["1_a"]
    (folder / "1_a" / "centers.pt").write_bytes(b"junk")
    with pytest.raises(InputError, match=r"cannot read prototypes .*1_a"):
        PrototypeStore(folder)["1_a"]
    torch.save(torch.zeros(10, 16), folder / "2_b" / "centers.pt")
    with pytest.raises(InputError, match=r"\(1, P, C\), got \(10, 16\)"):
        PrototypeStore(folder)["2_b"]
    (folder / "notes.txt").write_text("no zip")
    with pytest.raises(InputError, match="neither a folder nor a zip"):
        PrototypeStore(folder / "notes.txt").videos()


def test_samples_and_first_frames_get_those_of_their_video(folder: Path) -> None:
    stored = tiny_model(plus_plus=True, prototypes=str(folder), dropout=0.0)
    given = tiny_model(plus_plus=True, dropout=0.0)
    prototypes = PrototypeStore(folder)["2_b"]
    clip = clip_of(0, 64, 64)
    items = [
        {
            "frame": frame,
            "video_id": "2_b",
            "frame_index": index,
            "first_frame": index == 0,
            "last_frame": index == 3,
            "height": 64,
            "width": 64,
        }
        for index, frame in enumerate(clip)
    ]
    session = given.new_session(prototypes=prototypes)
    for answer, frame in zip(stored(items), clip, strict=True):
        assert torch.equal(answer["labels"], session.step(frame, labels_only=True)["labels"])
    with pytest.raises(InputError, match="video '3_c'"):
        stored([items[0] | {"video_id": "3_c"}])

    (sample,) = samples_of([clip])
    sample["sem_seg"] %= 5
    for model in (stored, given):
        model.drop_path = False
        model.train()
    losses = stored([sample | {"video_id": "2_b"}])
    assert losses == given([sample | {"prototypes": prototypes}])


def test_clustering_equals_the_published_one() -> None:
    description, arrays = load_fixture("cffmpp_prototypes_b0")
    config = description["config"] | {"num_classes": 124, "depths": 1}
    model = fixture_model(description | {"config": config, "fixture": "cffm_b0"})
    points = video_points(model, clip_of(0, 96, 160, frames=10))
    assert_recorded(description, arrays, "features", points, 1e-4)
    start = points[torch.from_numpy(arrays["init_index"])]
    assert_recorded(
        description, arrays, "centroids_after_1", kmeans(points, start, max_iter=1), 1e-4
    )
    centers = kmeans(points, start)
    expected = torch.from_numpy(arrays["centers.slice"])[0]
    difference = (centers[:, ::2] - expected).norm(dim=1) / expected.norm(dim=1)
    assert (difference < 1e-3).sum() >= 95
    nearest = centers[assign(points, centers)]
    inertia = (points - nearest).square().sum(1).mean().item()
    assert np.isclose(inertia, arrays["inertia"][0], rtol=1e-3)


def test_empty_clusters_become_zero() -> None:
    points = torch.tensor([[0.0, 1.0], [0.0, 3.0], [9.0, 9.0]])
    centers = kmeans(points, torch.tensor([[0.0, 2.0], [9.0, 8.0], [50.0, 50.0]]), max_iter=1)
    assert centers.tolist() == [[0.0, 2.0], [9.0, 9.0], [0.0, 0.0]]


def test_first_centres_are_distinct_points_drawn_by_seed_and_video() -> None:
    points = torch.arange(40.0).view(20, 2)
    drawn = random_points(points, 20, seed=1, video="a")
    assert sorted(map(tuple, drawn.tolist())) == list(map(tuple, points.tolist()))
    assert torch.equal(drawn, random_points(points, 20, seed=1, video="a"))
    assert not torch.equal(drawn, random_points(points, 20, seed=1, video="b"))
    with pytest.raises(InputError, match=r"20 points .* 21 prototypes"):
        random_points(points, 21, seed=1, video="a")


def test_ten_frames_are_spread_over_the_video() -> None:
    assert prototype_frames(100) == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]
    # The tail beyond ten whole intervals is never sampled, and a short video gives frame 0.
    assert prototype_frames(19) == list(range(10))
    assert prototype_frames(7) == [0] * 10


def test_the_tool_makes_what_the_model_reads_and_goes_on_where_it_stopped(
    videos: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, output = tmp_path / "cffm.pth", tmp_path / "centers"
    torch.save({"model": tiny_model(num_classes=12).state_dict()}, weights)
    arguments = ["--config-file", "cffm/cffm_toy", "--weights", str(weights)]
    arguments += ["--output", str(output), "--datasets", videos, "--clusters", "20"]
    arguments += ["model.embed_dim=16", "+model.num_heads=2", "model.focal_depth=2"]
    assert main(arguments) == 0
    store = PrototypeStore(output)
    assert store.videos() == ["a", "b"]
    first = {video: store[video] for video in store.videos()}
    assert all(value.shape == (20, 16) for value in first.values())
    assert not list(output.rglob("*.tmp*"))

    kept = (output / "a" / "centers.pt").stat().st_mtime_ns
    (output / "b" / "centers.pt").unlink()
    assert main(arguments) == 0
    assert "1 of 2 videos had prototypes already" in capsys.readouterr().out
    assert (output / "a" / "centers.pt").stat().st_mtime_ns == kept
    assert torch.equal(store["b"], first["b"])
