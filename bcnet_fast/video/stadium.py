"""Moving pictures of synthetic videos, and the linear map that reads the features back from their pixels.

The picture is a stadium. The meaning of the numbers decides what is drawn:

- Sky: the scene, one of six.
- Tracks: one for each class. A runner on it is an event. Its way from the left to the right line is the course of the
  three phases, its opacity the activation. So an action runs from left to right. A look-alike stays where it is, or
  runs from right to left: in every single picture it looks like the action.
- Spectators: one for each channel. Its brightness is the noise: the channel without scene and events.

At the top are a clock and a bar, which are not read.

Each of these is a sum of pixels with fixed weights. The weights follow from the drawing, and from the vectors of scenes
and phases (`SyntheticConfig.world`). Nothing is learned. `readout` has them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np

from ..data.synthetic import PHASES, SyntheticConfig, SyntheticVideo, world_vectors

HEIGHT, WIDTH = 180, 320  # pixels
BLOCK = 4  # pixels on a side of the squares whose means are read; all parts of the picture consist of such squares
FRAMES = 4  # pictures of a snippet; its features are those at the start of the third one

# Rows of pixels, from the top.
_CLOCK = slice(0, 12)
_SKY = slice(12, 44)
_TRACKS, _TRACK = 44, 24  # the first row, and rows of each track
_CROWD = slice(164, 180)
_SEATS = (2, 16)  # rows and columns of spectators; one for each channel
_LINES = (60, 176, 292)  # columns of pixels at which the phases are
_BAR, _BAR_COLUMNS = slice(4, 8), slice(128, 316)
_CONTRAST = 0.11  # contrast of a spectator, for a deviation of 1
_OPACITY = 0.76  # opacity of a runner, for an activation of 1

_INK, _GROUND, _WHITE = (226, 232, 240), (116, 56, 44), (196, 160, 148)
_RUNNERS = ((255, 226, 90), (120, 230, 255), (255, 170, 215), (160, 255, 140), (245, 245, 255))
# Colours of the sky at the top and the horizon, place and colour of the sun or moon, the skyline and its colour.
_SCENES = (
    ((70, 140, 230), (190, 220, 250), (262, 9, (255, 244, 190)), "hills", (70, 140, 80)),
    ((70, 50, 110), (250, 150, 90), (60, 22, (255, 226, 150)), "hills", (60, 40, 60)),
    ((8, 12, 40), (30, 40, 90), (230, 10, (235, 235, 215)), "city", (20, 22, 34)),
    ((120, 128, 138), (176, 182, 188), (30, 8, (210, 214, 218)), "mountains", (84, 92, 104)),
    ((30, 150, 190), (170, 230, 230), (150, 8, (255, 255, 230)), "sea", (16, 96, 150)),
    ((150, 190, 150), (226, 236, 196), (100, 9, (250, 250, 220)), "forest", (24, 84, 56)),
)
# Rows of three pixels, from the top, as bits.
_GLYPHS = dict(
    zip(
        "0123456789:/ ",
        [
            *([7, 5, 5, 5, 7], [2, 6, 2, 2, 7], [7, 1, 7, 4, 7], [7, 1, 3, 1, 7], [5, 5, 7, 1, 1]),
            *([7, 4, 7, 1, 7], [7, 4, 7, 5, 7], [7, 1, 2, 2, 2], [7, 5, 7, 5, 7], [7, 5, 7, 1, 7]),
            *([0, 2, 0, 2, 0], [1, 1, 2, 4, 4], [0, 0, 0, 0, 0]),
        ],
        strict=True,
    )
)
_ROOM = 12  # columns of pixels of a runner, to either side
_STEPS, _PARTS = 8, 4  # postures of a step, and places between two columns of pixels, that are drawn


def frame_rate(config: SyntheticConfig) -> Fraction:
    """Pictures a second."""
    return FRAMES * Fraction(config.fps) / config.stride


def frames(video: SyntheticVideo, config: SyntheticConfig) -> Iterator[np.ndarray]:
    """Yield the pictures of a video, [HEIGHT, WIDTH, 3] uint8, RGB, four for each snippet.

    Requires: at most six scenes, five classes and 32 channels, as the defaults have.
    """
    rate = float(frame_rate(config))
    time = np.arange(FRAMES * len(video.features)) / rate
    noise, scene, running = _noise(video, config), video.scene(time), _running(video, time)
    stage, skies, total = _shown(_stage()), _shown(_skies()), _clock(len(time) / rate)
    crowd, lit, bar = _crowd(), _lit(), _BAR_COLUMNS.stop - _BAR_COLUMNS.start
    for number, now in enumerate(time):
        if number % FRAMES == 0:
            stage[_CROWD] = _shown(crowd + (lit * _seated(noise[number // FRAMES]))[..., None])
        picture = stage.copy()
        picture[_SKY] = skies[scene[number]]
        for place, (action, position, activation) in enumerate(running[number]):
            # Neighbours on a track are not in step.
            _add_runner(picture, action, position, activation, now + 0.3 * place)
        picture[_BAR, _BAR_COLUMNS.start : _BAR_COLUMNS.start + number * bar // len(time)] = _INK
        _write(picture, f"{_clock(now)} / {total}", 1, 4)
        yield picture


def readout(config: SyntheticConfig) -> tuple[np.ndarray, np.ndarray]:
    """Weights [C, 3, HEIGHT / BLOCK, WIDTH / BLOCK] and biases [C]: features from the means of squares, 0 to 1."""
    phases, scenes = world_vectors(config)
    stage = _squares(_stage())
    rows = stage.shape[1]
    weights = np.zeros((config.feature_dim, *stage.shape))

    # The smallest weights that give each sky the vector of its scene.
    part = _square_rows(_SKY)
    skies = np.stack([_squares(sky).reshape(-1) for sky in _skies()[: config.scenes]])
    middle, mean = skies.mean(0), scenes.mean(0)
    sky = (np.linalg.pinv(skies - middle) @ (scenes - mean)).T
    weights[:, :, part] = sky.reshape(config.feature_dim, 3, -1, stage.shape[2])
    bias = mean - sky @ middle

    # The mean brightness of a spectator, which survives compression best.
    seats = _seated(np.arange(math.prod(_SEATS)))[::BLOCK, ::BLOCK]
    seen = _squares(_lit()[..., None].repeat(3, axis=2)).mean(0)
    for channel in range(config.feature_dim):
        mine = seats == channel
        weights[channel][:, _square_rows(_CROWD)] += mine / (3 * seen[mine].sum())

    # How much of a runner is in each column, by its colour, shared out to the phases on both sides.
    columns = (np.arange(WIDTH // BLOCK) + 0.5) * BLOCK
    shares = np.stack([np.interp(columns, _LINES, np.eye(PHASES)[phase]) for phase in range(PHASES)])
    # Compared with the ends of the track, where no runner comes: compression changes the colour of the whole track.
    ends = (columns < _LINES[0] - _ROOM) | (columns > _LINES[-1] + _ROOM)
    shares[:, ends] = 0
    ends &= columns > 4 * BLOCK  # without the number of the track
    shares[:, ends] = -shares.sum(1, keepdims=True) / ends.sum()
    for action in range(config.classes):
        colour = (np.array(_RUNNERS[action]) - _GROUND) / 255
        amount = _OPACITY * _runner(0, 0).sum() / BLOCK**2 * (colour**2).sum()
        top = (_TRACKS + action * _TRACK) // BLOCK
        track = np.einsum("pc,pw,k->ckw", phases[action], shares, colour / amount)
        weights[:, :, top : top + _TRACK // BLOCK] += track[:, :, None]

    unread = np.ones(rows, bool)
    unread[part] = False
    bias -= np.einsum("ckhw,khw->c", weights[:, :, unread], stage[:, unread])
    return weights, bias


def _noise(video: SyntheticVideo, config: SyntheticConfig) -> np.ndarray:
    """The features without scenes and events, [T, C]."""
    phases, scenes = world_vectors(config)
    middle = (np.arange(len(video.features)) + 0.5) * config.stride / config.fps
    left = video.features - scenes[video.scene(middle)]
    for event in video.events:
        left -= event.phases(middle) @ phases[event.action]
    return left


def _seated(values: np.ndarray) -> np.ndarray:
    """Values of the spectators, [C] -> [rows of the crowd, WIDTH]."""
    rows, columns = (_CROWD.stop - _CROWD.start) // _SEATS[0], WIDTH // _SEATS[1]
    return values.reshape(_SEATS).repeat(columns, axis=1).repeat(rows, axis=0)


def _running(video: SyntheticVideo, time: np.ndarray) -> list[list[tuple[int, float, float]]]:
    """Class, position and activation of the events in every picture."""
    found: list[list[tuple[int, float, float]]] = [[] for _ in time]
    for event in video.events:
        position, activation = event.position(time), event.activation(time)
        for number in np.flatnonzero(activation > 0):
            found[number].append((event.action, position[number], activation[number]))
    return found


@functools.cache
def _stage() -> np.ndarray:
    """The picture without sky, runners, clock and noise, [HEIGHT, WIDTH, 3] float64."""
    picture = np.full((HEIGHT, WIDTH, 3), _GROUND, np.float64)
    picture[_CROWD] = _crowd()
    picture[_CLOCK] = (16, 18, 26)
    picture[_BAR, _BAR_COLUMNS] = (52, 56, 70)
    for track in range(len(_RUNNERS)):
        top = _TRACKS + track * _TRACK
        picture[top, :] = _WHITE
        for line in _LINES:
            picture[top + 1 : top + _TRACK, line - 1 : line + 1] = (150, 98, 84)
        _write(picture, str(track), top + 8, 6)
    return picture


@functools.cache
def _lit() -> np.ndarray:
    """Brightness that one unit of noise adds to the spectators, [rows of the crowd, WIDTH] float64."""
    y, x = np.mgrid[: _CROWD.stop - _CROWD.start, :WIDTH] + 0.5
    heads = np.clip(3.4 - np.hypot((x % 5) - 2.5, (y % 8) - 3.5), 0, 1)
    bodies = np.clip(2.6 - np.abs((x % 5) - 2.5), 0, 1) * (y % 8 > 5)
    return _CONTRAST * (40 + 180 * np.maximum(heads, bodies))


@functools.cache
def _crowd() -> np.ndarray:
    """The spectators without noise, [rows of the crowd, WIDTH, 3] float64."""
    y, x = np.mgrid[: _CROWD.stop - _CROWD.start, :WIDTH]
    hue = 2 * np.pi * ((0.618 * (x // 5) + 0.37 * (y // 8)) % 1)
    tint = np.stack([24 * np.cos(hue - shift) for shift in (0, 2.1, 4.2)], axis=-1)
    return 0.5 / _CONTRAST * _lit()[..., None] + tint


@functools.cache
def _skies() -> np.ndarray:
    """The skies of all scenes, [scenes, rows, WIDTH, 3] float64."""
    height = _SKY.stop - _SKY.start
    y, x = np.mgrid[:height, :WIDTH] + 0.5
    found = []
    for above, below, (column, row, light), kind, colour in _SCENES:
        share = (y / height)[..., None]
        sky = (1 - share) * above + share * np.array(below)
        disc = np.clip(6.5 - np.hypot(x - column, y - row), 0, 1)[..., None]
        sky = (1 - disc) * sky + disc * np.array(light)
        land = np.clip(y - height + _skyline(kind, x), 0, 1)[..., None]
        sky = (1 - land) * sky + land * np.array(colour)
        if kind == "city":
            windows = (land[..., 0] > 0) & (x % 8 > 2) & (x % 8 < 5) & (y % 6 > 2) & (y % 6 < 5) & ((x // 8) % 3 > 0)
            sky[windows] = (250, 214, 120)
        found.append(sky)
    return np.stack(found)


def _skyline(kind: str, x: np.ndarray) -> np.ndarray:
    """Height of the land in pixels."""
    if kind == "hills":
        return 8 + 4 * np.sin(x / 31) + 2 * np.sin(x / 13)
    if kind == "city":
        return 10 + (np.floor(x / 24) * 7 % 13)
    if kind == "mountains":
        return 6 + 16 * np.abs((x / 80) % 1 - 0.5) * 2
    if kind == "forest":
        return 10 + 8 * (1 - np.abs((x / 12) % 1 - 0.5) * 2)
    return np.full_like(x, 9)


@functools.cache
def _runner(step: int, part: int) -> np.ndarray:
    """Opacity of a runner, [_TRACK, 2 * _ROOM] float64, of the same sum for every posture.

    part: place right of the middle, in parts of a column of pixels.
    """
    y, x = np.mgrid[:_TRACK, : 2 * _ROOM] + 0.5
    x = x - _ROOM - part / _PARTS
    swing = 5 * math.sin(2 * math.pi * (step + 0.5) / _STEPS)
    limbs = [
        *(((0, 5), (0, 5), 3.0), ((0, 9), (0, 14), 1.9)),
        *(((0, 14), (swing, 21.5), 1.4), ((0, 14), (-swing, 21.5), 1.4)),
        *(((0, 9.5), (0.9 * swing, 13), 1.1), ((0, 9.5), (-0.9 * swing, 13), 1.1)),
    ]
    drawn = np.zeros_like(x)
    for (x0, y0), (x1, y1), radius in limbs:
        along = ((x - x0) * (x1 - x0) + (y - y0) * (y1 - y0)) / max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-9)
        along = np.clip(along, 0, 1)
        distance = np.hypot(x - x0 - along * (x1 - x0), y - y0 - along * (y1 - y0))
        drawn = np.maximum(drawn, np.clip(radius + 0.5 - distance, 0, 1))
    return drawn * (120 / drawn.sum())


def _add_runner(picture: np.ndarray, action: int, position: float, activation: float, now: float) -> None:
    place = np.interp(position, np.arange(PHASES), _LINES) - _ROOM
    column, part = divmod(round(place * _PARTS), _PARTS)
    shape = _runner(int(now * 2 * _STEPS) % _STEPS, part)
    top = _TRACKS + action * _TRACK
    colour = np.subtract(_RUNNERS[action], _GROUND)
    there = picture[top : top + _TRACK, column : column + 2 * _ROOM]
    there[:] = _shown(there + (_OPACITY * activation * shape)[..., None] * colour)


def _write(picture: np.ndarray, text: str, top: int, left: int) -> None:
    """Write in figures of 3 by 5 squares of two pixels."""
    letters = _letters(text)
    picture[top : top + letters.shape[0], left : left + letters.shape[1]][letters] = _INK


@functools.lru_cache(maxsize=16)
def _letters(text: str) -> np.ndarray:
    """Where the ink of a text is, [10, 8 * its length] bool."""
    bits = np.array([[[row >> bit & 1 for bit in (2, 1, 0)] for row in _GLYPHS[letter]] for letter in text], bool)
    wide = bits.repeat(2, axis=1).repeat(2, axis=2)
    return np.pad(wide, ((0, 0), (0, 0), (0, 2))).transpose(1, 0, 2).reshape(10, -1)


def _shown(picture: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8)


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _squares(picture: np.ndarray) -> np.ndarray:
    """Means of squares, [H, W, 3] from 0 to 255 -> [3, H / BLOCK, W / BLOCK] from 0 to 1."""
    height, width = picture.shape[0] // BLOCK, picture.shape[1] // BLOCK
    return picture.reshape(height, BLOCK, width, BLOCK, 3).mean((1, 3)).transpose(2, 0, 1) / 255


def _square_rows(rows: slice) -> slice:
    return slice(rows.start // BLOCK, rows.stop // BLOCK)
