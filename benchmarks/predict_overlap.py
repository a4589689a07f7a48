"""Does reading and writing hold up the network? `predict` with threads against a plain loop.

    python benchmarks/predict_overlap.py

Both ways write the same files, checked byte for byte. Where the network is slower than reading and
than each of the two writers, it should hardly ever wait for them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from interleaved import finish, interleave, parser, result, set_threads
from predict_memory import make_video

from vss2.data.video_io import open_source
from vss2.inference import ResultWriter, RunReport, VideoPredictor, run
from vss2.loading import load_model
from vss2.visualization import palette


def main() -> None:
    options = parser(__doc__.splitlines()[0], rounds=7)
    options.add_argument("--config-file", default="segformer/segformer_toy")
    options.add_argument("--frames", type=int, default=60)
    options.add_argument("--size", type=int, nargs=2, default=(192, 256), help="height width")
    args = options.parse_args()
    set_threads(1)
    predictor = VideoPredictor(load_model(args.config_file, None, (), "cpu"))
    count = predictor.model.num_classes
    reports: list[RunReport] = []
    with tempfile.TemporaryDirectory() as folder:
        make_video(Path(folder) / "video.mp4", args.frames, tuple(args.size))
        source = open_source(Path(folder) / "video.mp4")

        def predict(name: str, overlap: bool) -> None:
            names = [str(k) for k in range(count)]
            writer = ResultWriter(Path(folder) / name, names, palette(count), rle=True)
            report = run(predictor, source, writer, overlap=overlap)
            if overlap:
                reports.append(report)

        ways = {
            "threads": lambda: predict("threads", True),
            "loop": lambda: predict("loop", False),
        }
        times = interleave(ways, args.rounds)
        for path in (Path(folder) / "loop").rglob("*.*"):
            other = Path(folder) / "threads" / path.relative_to(Path(folder) / "loop")
            assert path.read_bytes() == other.read_bytes(), f"{path.name} differs"
    seconds = sum(report.seconds for report in reports)
    frames = sum(report.waited_for_frames for report in reports) / seconds
    writers = sum(report.waited_for_writers for report in reports) / seconds
    what = f"predict, {args.frames} frames of {args.size[0]}x{args.size[1]}, threads / loop"
    finish([result(what, times, "threads", "loop", "< 1")], args.json)
    print(f"the network waited {frames:.1%} of the time for frames, {writers:.1%} for writing")


if __name__ == "__main__":
    main()
