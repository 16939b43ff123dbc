"""Classic image classifiers, one implementation on NumPy and CuPy.

The public names stand in ``__init__.pyi``, for type checkers and editors. They are loaded from
there on first use, so that ``import gpuclf`` touches neither CuPy nor scikit-learn.
"""

import lazy_loader

__version__ = "0.2.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
