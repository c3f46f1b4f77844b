"""The kitchen: a table, a bin on it and coloured objects, as plain data drawn from a seed, and as a MuJoCo model.

The layout is data so that any simulator can build the same scene.
"""

from dataclasses import dataclass, field

import mujoco
import numpy as np
from numpy.typing import NDArray

from pi05_ros.sim.tasks import COLOURS, SHAPES

Array = NDArray[np.float64]
RGB = tuple[float, float, float]

COLOUR_RGB: dict[str, RGB] = {
    "red": (0.85, 0.08, 0.08),
    "green": (0.10, 0.65, 0.15),
    "blue": (0.10, 0.20, 0.85),
    "yellow": (0.95, 0.80, 0.05),
}
PLACE_ATTEMPTS = 10_000


@dataclass(frozen=True, slots=True)
class SceneConfig:
    """How scenes are drawn. Lengths in metres, angles in radians; the work pose is the world's origin.

    Attributes:
        table_top_z: height of the table's surface.
        table_near_x, table_half_size: near edge and half extents of the table top.
        bin_centre: x, y of the bin on the table.
        bin_half_size: inner half extents of the bin.
        bin_height: height of its walls.
        objects: least and most number of objects.
        object_x, object_y: ranges of x and of |y| in which objects stand.
        object_gap: least distance between two objects' centres.
        object_yaw: largest |yaw| of an object.
        start_back: range of the distance from which the base drives up.
        start_side, start_yaw: largest offsets of the start pose.
        joint_noise: standard deviation of the arms' starting posture [rad].
        camera_jitter: standard deviation of each camera's mounting error [rad].
        colour_jitter: standard deviation of object, table and light colours.
    """

    table_top_z: float = 0.75
    table_near_x: float = 0.40
    table_half_size: tuple[float, float] = (0.35, 0.60)
    bin_centre: tuple[float, float] = (0.53, 0.0)
    bin_half_size: tuple[float, float] = (0.11, 0.10)
    bin_height: float = 0.08
    objects: tuple[int, int] = (2, 4)
    object_x: tuple[float, float] = (0.47, 0.60)
    object_y: tuple[float, float] = (0.19, 0.38)
    object_gap: float = 0.115
    object_yaw: float = 0.5
    start_back: tuple[float, float] = (0.5, 1.0)
    start_side: float = 0.12
    start_yaw: float = 0.12
    joint_noise: float = 0.02
    camera_jitter: float = 0.006
    colour_jitter: float = 0.05


@dataclass(frozen=True, slots=True)
class ObjectLayout:
    """One object: words, pose on the table (x, y [m], yaw [rad]), half extents [3] m and colour."""

    colour: str
    shape: str
    pose: tuple[float, float, float]
    size: tuple[float, float, float]
    rgb: RGB

    @property
    def name(self) -> str:
        """What language calls it."""
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True, slots=True)
class Layout:
    """A drawn scene.

    Attributes:
        seed: what it was drawn from.
        objects: the movable objects.
        base_pose: x, y [m], yaw [rad] where the base starts.
        joint_noise: [J] offsets from the home posture, scaled to 1 standard deviation.
        table_rgb, floor_rgb: colours.
        light: brightness factor.
        light_direction: direction of the main light.
        camera_jitter: rotation vector [rad] per camera name.
    """

    seed: int
    objects: tuple[ObjectLayout, ...]
    base_pose: tuple[float, float, float]
    table_rgb: RGB
    floor_rgb: RGB
    light: float
    light_direction: tuple[float, float, float]
    camera_jitter: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    joint_noise: tuple[float, ...] = ()


def random_layout(config: SceneConfig, seed: int, cameras: tuple[str, ...], joints: int) -> Layout:
    """Draw a scene; the same arguments always give the same scene.

    Args:
        config: ranges to draw from.
        seed: non-negative seed.
        cameras: names of the cameras that get a mounting error.
        joints: J, number of joints that get a starting offset.

    Raises:
        ValueError: the objects do not fit, or there are more than names for them.
    """
    if config.objects[1] > len(COLOURS) * len(SHAPES):
        raise ValueError(f"objects {config.objects}: there are {len(COLOURS) * len(SHAPES)} different names at most")
    rng = np.random.default_rng(seed)
    base = (-rng.uniform(*config.start_back), *rng.uniform(-1, 1, 2) * (config.start_side, config.start_yaw))
    count = int(rng.integers(config.objects[0], config.objects[1] + 1))
    return Layout(
        seed=seed,
        objects=tuple(_draw_objects(config, rng, count)),
        base_pose=tuple(float(value) for value in base),  # type: ignore[arg-type]
        table_rgb=_shade(rng, (0.40, 0.75), (1.0, 0.93, rng.uniform(0.7, 0.93))),
        floor_rgb=_shade(rng, (0.35, 0.55), (1.0, 0.98, rng.uniform(0.9, 1.0))),
        light=float(rng.uniform(0.8, 1.2)),
        light_direction=(float(rng.uniform(-0.4, 0.4)), float(rng.uniform(-0.4, 0.4)), -1.0),
        camera_jitter={name: tuple(rng.normal(0, config.camera_jitter, 3).tolist()) for name in cameras},
        joint_noise=tuple(rng.normal(0, config.joint_noise, joints).tolist()),
    )


def _draw_objects(config: SceneConfig, rng: np.random.Generator, count: int) -> list[ObjectLayout]:
    names = [(colour, shape) for colour in COLOURS for shape in SHAPES]
    placed: list[ObjectLayout] = []
    for index in rng.permutation(len(names))[:count]:
        colour, shape = names[index]
        x, y = _draw_place(config, rng, placed)
        pose = (float(x), float(y), float(rng.uniform(-config.object_yaw, config.object_yaw)))
        rgb = _vary(COLOUR_RGB[colour], rng, config.colour_jitter)
        placed.append(ObjectLayout(colour, shape, pose, _draw_size(shape, rng), rgb))
    return placed


def _draw_place(config: SceneConfig, rng: np.random.Generator, placed: list[ObjectLayout]) -> tuple[float, float]:
    for _ in range(PLACE_ATTEMPTS):
        x, y = rng.uniform(*config.object_x), rng.uniform(*config.object_y) * rng.choice([-1, 1])
        if all(np.hypot(x - o.pose[0], y - o.pose[1]) > config.object_gap for o in placed):
            return x, y
    raise ValueError(
        f"no room for {len(placed) + 1} objects {config.object_gap} m apart; widen object_x or object_y, or lower "
        "objects or object_gap of SceneConfig"
    )


def _draw_size(shape: str, rng: np.random.Generator) -> tuple[float, float, float]:
    half = float(rng.uniform(0.020, 0.026))
    height = float(rng.uniform(0.024, 0.030))
    if shape == "block":
        return half, 0.038, height
    return half, half, height if shape == "cylinder" else max(half, 0.024)


def _shade(rng: np.random.Generator, brightness: tuple[float, float], tint: tuple[float, float, float]) -> RGB:
    r, g, b = (float(rng.uniform(*brightness)) * np.array(tint)).tolist()
    return r, g, b


def _vary(rgb: RGB, rng: np.random.Generator, deviation: float) -> RGB:
    r, g, b = np.clip(np.array(rgb) + rng.normal(0, deviation, 3), 0, 1).tolist()
    return r, g, b


_BOX, _CYLINDER = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER
_WALL = 0.004


def add_scene(spec: mujoco.MjSpec, config: SceneConfig, layout: Layout) -> None:
    """Add floor, lights, table, bin and objects to a model. Objects become free bodies of their name."""
    world = spec.worldbody
    spec.visual.headlight.ambient = [0.25 * layout.light] * 3
    _add_floor(spec, layout)
    _add_lights(spec, layout)
    _add_table(world, config, layout)
    _add_bin(world, config)
    for item in layout.objects:
        _add_object(world, config, item)


def _add_lights(spec: mujoco.MjSpec, layout: Layout) -> None:
    """Add light without shadows, which would take most of the rendering time, and a sky, so that nothing is black."""
    ambient, lamp = 0.40 * layout.light, 0.45 * layout.light
    spec.visual.headlight.ambient = [ambient] * 3
    spec.visual.headlight.diffuse = [0.15] * 3
    spec.visual.headlight.specular = [0.0] * 3
    spec.worldbody.add_light(
        type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
        pos=[0, 0, 3],
        dir=layout.light_direction,
        diffuse=[lamp] * 3,
        specular=[0.1] * 3,
        castshadow=False,
    )
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        width=64,
        height=384,
        rgb1=[0.80, 0.83, 0.86],
        rgb2=[0.60, 0.62, 0.65],
    )


def _add_floor(spec: mujoco.MjSpec, layout: Layout) -> None:
    light = [min(1.0, 1.12 * value) for value in layout.floor_rgb]
    spec.add_texture(
        name="floor",
        type=mujoco.mjtTexture.mjTEXTURE_2D,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_CHECKER,
        width=128,
        height=128,
        rgb1=list(layout.floor_rgb),
        rgb2=light,
    )
    material = spec.add_material(name="floor", texrepeat=[8, 8])
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = "floor"
    spec.worldbody.add_geom(name="floor", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[4, 4, 0.1], material="floor")


def _add_table(world: mujoco.MjsBody, config: SceneConfig, layout: Layout) -> None:
    half_x, half_y = config.table_half_size
    table = world.add_body(name="table", pos=[config.table_near_x + half_x, 0, 0])
    top = {"size": [half_x, half_y, 0.02], "pos": [0, 0, config.table_top_z - 0.02]}
    table.add_geom(type=_BOX, rgba=[*layout.table_rgb, 1], friction=[0.8, 0.005, 0.0001], **top)
    leg = (config.table_top_z - 0.04) / 2
    for x in (-half_x + 0.05, half_x - 0.05):
        for y in (-half_y + 0.05, half_y - 0.05):
            table.add_geom(type=_CYLINDER, size=[0.03, leg, 0], pos=[x, y, leg], rgba=[0.3, 0.22, 0.15, 1])


def _add_bin(world: mujoco.MjsBody, config: SceneConfig) -> None:
    (half_x, half_y), half_z = config.bin_half_size, config.bin_height / 2
    body = world.add_body(name="bin", pos=[*config.bin_centre, config.table_top_z])
    walls = [([half_x + 2 * _WALL, half_y + 2 * _WALL, _WALL], [0, 0, _WALL])]
    for sign in (-1, 1):
        walls.append(([_WALL, half_y + 2 * _WALL, half_z], [sign * (half_x + _WALL), 0, half_z]))
        walls.append(([half_x, _WALL, half_z], [0, sign * (half_y + _WALL), half_z]))
    for size, position in walls:
        body.add_geom(type=_BOX, size=size, pos=position, rgba=[0.25, 0.27, 0.30, 1])


def _add_object(world: mujoco.MjsBody, config: SceneConfig, item: ObjectLayout) -> None:
    x, y, yaw = item.pose
    height = config.table_top_z + item.size[2] + 0.001
    body = world.add_body(name=item.name, pos=[x, y, height], quat=[np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)])
    body.add_freejoint(name=item.name)
    round_one = item.shape == "cylinder"
    body.add_geom(
        type=_CYLINDER if round_one else _BOX,
        size=[item.size[0], item.size[2], 0] if round_one else list(item.size),
        mass=0.08,
        rgba=[*item.rgb, 1],
        friction=[1.0, 0.01, 0.001],
        condim=6 if round_one else 4,
    )
