"""Off-screen pictures of a MuJoCo model through EGL, whatever MUJOCO_GL says.

MuJoCo's own Renderer fixes its backend when mujoco is first imported; this one does not depend on who imported it
first. A GL context belongs to the thread that made it: create, use and close a `CameraRenderer` in one thread.
"""

import mujoco
import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]


class CameraRenderer:
    """Renders the model's cameras without shadows and reflections (they would take most of the time).

    Args:
        model: compiled model; its off-screen buffer must hold the picture.
        width, height: size of the pictures [px].

    Raises:
        ImportError, RuntimeError: no EGL display; the message says what is missing.
    """

    def __init__(self, model: mujoco.MjModel, width: int, height: int) -> None:
        from mujoco.egl import GLContext

        self._gl = GLContext(width, height)
        self._gl.make_current()
        self._rectangle = mujoco.MjrRect(0, 0, width, height)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[:3] = 1
        self._option.sitegroup[:] = 0
        self._option.sitegroup[:] = 0
        self._pixels = np.empty((height, width, 3), dtype=np.uint8)
        self._load(model)

    def load(self, model: mujoco.MjModel) -> None:
        """Show another model from now on."""
        self._gl.make_current()
        self._context.free()
        self._load(model)

    def render(self, data: mujoco.MjData, camera: int) -> Pixels:
        """Return what a camera sees: RGB uint8 [H, W, 3], a new array."""
        self._draw(data, camera)
        mujoco.mjr_readPixels(self._pixels, None, self._rectangle, self._context)
        return self._pixels[::-1].copy()

    def segment(self, data: mujoco.MjData, camera: int) -> NDArray[np.int32]:
        """Return which geom every pixel shows: int32 [H, W], -1 for none."""
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        code = self.render(data, camera).astype(np.int32)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        # The colour is the place in the scene plus one, base 256; 0 is the background.
        place = code[..., 0] + 256 * code[..., 1] + 65536 * code[..., 2]
        geoms = np.full(self._scene.ngeom + 1, -1, dtype=np.int32)
        for geom in self._scene.geoms[: self._scene.ngeom]:
            if geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                geoms[geom.segid + 1] = geom.objid
        shown: NDArray[np.int32] = geoms[place]
        return shown

    def close(self) -> None:
        """Release the GL context."""
        if self._gl is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._gl = None

    def _load(self, model: mujoco.MjModel) -> None:
        self._model = model
        self._scene = mujoco.MjvScene(model, maxgeom=500)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION, mujoco.mjtRndFlag.mjRND_HAZE):
            self._scene.flags[flag] = 0
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._camera = mujoco.MjvCamera()
        self._camera.type = mujoco.mjtCamera.mjCAMERA_FIXED

    def _draw(self, data: mujoco.MjData, camera: int) -> None:
        self._gl.make_current()
        self._camera.fixedcamid = camera
        mujoco.mjv_updateScene(
            self._model, data, self._option, None, self._camera, mujoco.mjtCatBit.mjCAT_ALL, self._scene
        )
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
