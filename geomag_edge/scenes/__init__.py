"""Overhead scenes with exact ground truth: pixels, boxes, masks, prompts and answers.

scene = render_scene(7, 1024)
write_scene(scene, "scene.tif")
"""

from .catalog import ALL_CLASSES, CLASSES, COLOURS, LANDMARKS, SCENE_CLASSES
from .geotiff import sample_scene, write_scene
from .phrases import VOCABULARY, corpus
from .questions import Question, make_questions
from .scene import RenderedScene, SceneObject, render_scene
from .spec import SceneSpec

__all__ = [
    "ALL_CLASSES",
    "CLASSES",
    "COLOURS",
    "LANDMARKS",
    "SCENE_CLASSES",
    "VOCABULARY",
    "Question",
    "RenderedScene",
    "SceneObject",
    "SceneSpec",
    "corpus",
    "make_questions",
    "render_scene",
    "sample_scene",
    "write_scene",
]
