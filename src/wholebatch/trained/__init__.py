"""What one does with a run that was trained: evaluate it, ask it about files, and hand its model on.

``opening`` finds the newest weights and makes the model; ``evaluation``, ``prediction`` and ``export`` use it.
``inputs`` is what a run keeps about its images, so that the last two need none of its data.
"""
