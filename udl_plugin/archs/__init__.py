"""Networks. `forward(x)` of each returns the SR image; `forward(x, return_log_var=True)` adds the log-variance."""
from udl_plugin.plugin import register

register()  # first: see there

from udl_plugin.archs.dpdnn_arch import DPDNN, DPDNNTwo, DPDNNVar  # noqa: E402
from udl_plugin.archs.edsr_arch import EDSRTwo, EDSRVar  # noqa: E402
from udl_plugin.archs.two_step import TwoStep  # noqa: E402
from udl_plugin.archs.variance_head import VarianceHead  # noqa: E402
from udl_plugin.archs.with_variance import WithVariance  # noqa: E402

__all__ = ['DPDNN', 'DPDNNTwo', 'DPDNNVar', 'EDSRTwo', 'EDSRVar', 'TwoStep', 'VarianceHead', 'WithVariance']
