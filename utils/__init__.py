"""The project's rooms.

Here alone, before any of them loads Keras or TensorFlow, the project says what it needs of these, whatever
the environment and the settings of other projects (`~/.keras/keras.json`) say.
"""

import os

from utils import quiet_start

#: The trainings and the inference are TensorFlow's; `ML_3D_Unet`'s layers run on any backend.
os.environ["KERAS_BACKEND"] = "tensorflow"
#: TensorFlow leaves the kernels of oneDNN out on CPUs without instructions for networks (VNNI, AMX and the
#: like) unless it is asked: there a training step of a small U-Net took 2.5 s without them, .43 s with them.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
quiet_start.install()
