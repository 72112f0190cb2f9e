"""Predict every GeoTIFF of a folder, one after the other; a scene that cannot be used stops nothing.

    python pipelines/predict_folder.py SCENES OUT [MODEL]

Scenes that were finished before are not done again. Exit status 3 if any scene failed.
"""

import sys
from pathlib import Path

import geoseg


def main(folder: Path, out: Path, model: str = "default") -> int:
    """Predict the scenes of a folder; returns how many failed."""
    failed = 0
    for scene in sorted(folder.glob("*.tif")):
        try:
            manifest = geoseg.predict(scene, model, out=out)
        except geoseg.GeosegError as error:
            failed += 1
            print(f"failed   {error}")
            continue
        largest = max(manifest["classes"].items(), key=lambda item: item[1]["pixels"])[0]
        print(f"{'kept' if manifest['already_done'] else 'done':<8} {scene.name}: mostly {largest}")
    return failed


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit(__doc__)
    sys.exit(3 if main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]) else 0)
