"""Names of other libraries and books on top of this one, so that code written for them runs unchanged but for its
import line: ``d2l`` has those of Dive into Deep Learning."""
