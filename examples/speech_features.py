"""Write log-mel features of Google Speech Commands into one .npz file, which data.name=arrays reads.

    pip install 'loft_jax[speech]'
    python examples/speech_features.py folder speech_commands_v0.02 --out speech.npz
    python examples/speech_features.py tfds ~/tensorflow_datasets --out speech.npz

    python -m loft_jax.train --config ist_speech_2layer --data.data_dir speech.npz --workdir runs/ist_speech

A sound is its first second, 16,000 samples, with silence after it if it is shorter. Its features are the power in 128
mel bands, in decibel, at 32 moments 512 samples apart: 4,096 numbers, band by band. A folder has a folder of WAV files
for each of 35 words; a fifth of the speakers, by a hash of their names, are for testing. TFDS has 12 classes and splits
of its own, of which train and validation are for training; it needs TensorFlow for sounds.
"""

import argparse
import hashlib
import wave
from collections.abc import Iterator
from pathlib import Path

import librosa
import numpy as np

RATE, BANDS, HOP = 16_000, 128, 512
TEST_SHARE = 20  # of 100

# A sound of int16 samples, its label, and whether it is for testing.
Sound = tuple[np.ndarray, int, bool]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=("folder", "tfds"), help="WAV files in a folder for each word, or TFDS")
    parser.add_argument("directory", type=Path, help="the folder, or the data directory of TFDS")
    parser.add_argument("--out", metavar="FILE.npz", required=True)
    options = parser.parse_args()
    directory = options.directory.expanduser()
    if not directory.is_dir():
        raise SystemExit(f"error: {directory}: no such directory")
    words, sounds = (read_folder if options.source == "folder" else read_tfds)(directory)
    arrays: dict[str, list] = {f"{split}_{part}": [] for split in ("train", "test") for part in ("images", "labels")}
    for samples, label, tests in sounds:
        split = "test" if tests else "train"
        arrays[f"{split}_images"].append(log_mel(samples))
        arrays[f"{split}_labels"].append(label)
    if not (arrays["train_images"] and arrays["test_images"]):
        raise SystemExit(f"error: {directory}: holds too few sounds for a training and a test set")
    stacked = {name: np.stack(values) for name, values in arrays.items()}
    np.savez(options.out, **stacked, class_names=np.array(words), name=np.array("speech_commands"))
    counts = f"{len(stacked['train_labels']):,} training and {len(stacked['test_labels']):,} test sounds"
    print(f"{options.out}: {counts}, {len(words)} words, {stacked['train_images'].shape[1]:,} features")


def log_mel(samples: np.ndarray) -> np.ndarray:
    """Return the features of a sound of int16 samples: float32 [4096]."""
    sound = np.zeros(RATE, np.float32)
    sound[: len(samples)] = samples[:RATE].astype(np.float32) / 2**15
    power = librosa.feature.melspectrogram(y=sound, sr=RATE, n_fft=2048, hop_length=HOP, n_mels=BANDS)
    return librosa.power_to_db(power).astype(np.float32).reshape(-1)


def is_for_testing(speaker: str) -> bool:
    """Say whether the sounds of a speaker are for testing; of many speakers a fifth are."""
    return int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 100 < TEST_SHARE


def read_folder(directory: Path) -> tuple[list[str], Iterator[Sound]]:
    """Return the words, and the sounds WORD/SPEAKER_nohash_NUMBER.wav; _background_noise_ is no word."""
    words = sorted(path.name for path in directory.iterdir() if path.is_dir() and path.name[0] not in "._")
    if not words:
        raise SystemExit(f"error: {directory}: holds no folder of a word")

    def sounds() -> Iterator[Sound]:
        for label, word in enumerate(words):
            for path in sorted((directory / word).glob("*.wav")):
                yield read_wav(path), label, is_for_testing(path.name.partition("_")[0])

    return words, sounds()


def read_wav(path: Path) -> np.ndarray:
    """Read the int16 samples of a WAV file."""
    with wave.open(str(path)) as file:
        form = (file.getnchannels(), file.getsampwidth(), file.getframerate())
        if form != (1, 2, RATE):
            raise SystemExit(f"error: {path}: has (channels, bytes, rate) {form}; must be (1, 2, {RATE})")
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def read_tfds(directory: Path) -> tuple[list[str], Iterator[Sound]]:
    """Return the words, and the sounds, of speech_commands as TFDS has prepared it in ArrayRecord files."""
    import tensorflow_datasets as tfds

    versions = sorted((directory / "speech_commands").glob("*.*.*"))
    if not versions:
        raise SystemExit(
            f"error: {directory}: holds no speech_commands; prepare it with TFDS, file_format=array_record"
        )
    builder = tfds.builder_from_directory(versions[-1])

    def sounds() -> Iterator[Sound]:
        for split in builder.info.splits:
            for record in builder.as_data_source(split=split):
                yield np.asarray(record["audio"]), int(record["label"]), split == "test"

    return builder.info.features["label"].names, sounds()


if __name__ == "__main__":
    main()
