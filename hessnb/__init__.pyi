"""Written by `make export` from the table in nbs/names.ipynb: edit that."""
from .curvature.objective import Objective as Objective
from .curvature.operator import MatrixOperator as MatrixOperator
from .curvature.hessian import HessianOperator as HessianOperator
from .curvature.gauss_newton import GGNOperator as GGNOperator, FisherOperator as FisherOperator
from .curvature.eigenpairs import EigenPairs as EigenPairs, dense_eigenpairs as dense_eigenpairs
from .curvature.top import top_eigenpairs as top_eigenpairs
from .curvature.lowrank import nonzero_eigenpairs as nonzero_eigenpairs
from .curvature.trace import trace as trace
from .curvature.density import spectral_density as spectral_density
from .curvature.outliers import count_outliers as count_outliers
from .curvature.sampling import sampling_error as sampling_error
from .curvature.layer_pairs import layer_eigenpairs as layer_eigenpairs
from .boundary.gradients import gradient_cosines as gradient_cosines
from .boundary.alignment import align as align
from .boundary.structure import class_structure as class_structure
from .boundary.plane import scan_plane as scan_plane
from .boundary.curves import trace_boundary as trace_boundary
from .boundary.design import design_input as design_input
from .boundary.points import boundary_points as boundary_points
from .boundary.measure import (
    random_baseline as random_baseline,
    generalization_measure as generalization_measure,
)
from .boundary.directions import effective_directions as effective_directions, resolve_measure as resolve_measure
from .boundary.complexity import boundary_complexity as boundary_complexity
from .boundary.margin import estimate_margin as estimate_margin
from .boundary.margin_profile import margin_profile as margin_profile
from .boundary.probe import eigenvector_table as eigenvector_table
from .boundary.examine import examine as examine
from .boundary.compare import compare_minima as compare_minima
from .training.track import track as track
from .show.sliders import EigenvectorSliders as EigenvectorSliders
from .show.spectrum import SpectrumExplorer as SpectrumExplorer
from .show.explorer import BoundaryExplorer as BoundaryExplorer
from .show.comparer import MinimaComparer as MinimaComparer
from .show.training import plot_training as plot_training
from .show.training_explorer import TrainingExplorer as TrainingExplorer
from .show.workbook import Workbook as Workbook
from .report import write_report as write_report

__version__: str
