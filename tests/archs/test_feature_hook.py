"""Networks that upsample, or return their SR image, in other ways than BasicSR's: features found, both steps train."""
import pytest
import torch
from basicsr.utils.registry import ARCH_REGISTRY
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from udl_plugin.archs import TwoStep, WithVariance
from udl_plugin.archs.build import probe_shapes
from udl_plugin.archs.feature_hook import find_feature_layer
from udl_plugin.archs.outputs import forward_with_outputs, get_sr_image
from udl_plugin.errors import UserError

FEATURES = 8
pytestmark = pytest.mark.usefixtures('seed', 'registered')


def conv(num_in, num_out, size=3, **options):
    return nn.Conv2d(num_in, num_out, size, padding=size // 2, **options)


def shuffle(num_in=FEATURES, num_out=3, *between):
    return nn.Sequential(conv(num_in, 4 * num_out), *between, nn.PixelShuffle(2))


class Base(nn.Module):
    """Of scale 2. `up` turns the features into the SR image."""

    def __init__(self):
        super().__init__()
        self.head, self.body = conv(3, FEATURES), conv(FEATURES, FEATURES)
        self.up = self.build_up()

    def build_up(self):
        return shuffle()

    def features(self, x):
        return F.relu(self.body(self.head(x)))

    def forward(self, x):
        return self.up(self.features(x))


class ReturnsTuple(Base):
    def forward(self, x):
        features = self.features(x)
        return features, self.up(features)


class ReturnsList(Base):
    def forward(self, x):
        return [self.up(self.features(x)), 0.5]


class ReturnsDict(Base):
    def forward(self, x):
        return {'skipped': x, 'sr': super().forward(x)}


class ReturnsDictOfOtherNames(Base):
    def forward(self, x):
        features = self.features(x)
        return {'features': features, 'mine': self.up(features)}


class TupleInTraining(Base):
    def forward(self, x):
        features = self.features(x)
        return (self.up(features), features) if self.training else self.up(features)


class BicubicSkip(Base):
    def forward(self, x):
        return super().forward(x) + F.interpolate(x, scale_factor=2, mode='bicubic')


class BicubicFirst(Base):
    """SRCNN."""

    def build_up(self):
        return conv(FEATURES, 3)

    def forward(self, x):
        x = F.interpolate(x, scale_factor=2, mode='bicubic')
        return x + super().forward(x)


class UpsampleThenConv(Base):
    def build_up(self):
        return nn.Sequential(nn.Upsample(scale_factor=2), conv(FEATURES, FEATURES), nn.ReLU(), conv(FEATURES, 3))


class Transposed(Base):
    def build_up(self):
        return nn.Sequential(nn.ConvTranspose2d(FEATURES, FEATURES, 4, 2, 1), conv(FEATURES, 3))


class FunctionalShuffle(Base):
    def build_up(self):
        return conv(FEATURES, 12)

    def forward(self, x):
        return F.pixel_shuffle(super().forward(x), 2)


class FunctionalShuffleThenConv(Base):
    def build_up(self):
        return nn.ModuleList([conv(FEATURES, 4 * FEATURES), conv(FEATURES, 3)])

    def forward(self, x):
        return self.up[1](F.relu(F.pixel_shuffle(self.up[0](self.features(x)), 2)))


class FunctionalInterpolate(Base):
    def build_up(self):
        return nn.Sequential(conv(FEATURES, FEATURES), nn.ReLU(), conv(FEATURES, 3))

    def forward(self, x):
        return self.up(F.interpolate(self.features(x), scale_factor=2))


class ConvSkipFirst(Base):
    """WDSR."""

    def build_up(self):
        self.skip = nn.Sequential(conv(3, 12, 5), nn.PixelShuffle(2))
        return shuffle()

    def forward(self, x):
        skip = self.skip(x)
        return skip + super().forward(x)


class ConvSkipBetween(ConvSkipFirst):
    def forward(self, x):
        features = self.features(x)
        skip = self.skip(x)
        return skip + self.up(features)


class ConvSkipLast(ConvSkipFirst):
    def forward(self, x):
        return Base.forward(self, x) + self.skip(x)


class ConvSkipOfFunctions(FunctionalShuffle):
    def build_up(self):
        self.skip = conv(3, 12, 5)
        return super().build_up()

    def forward(self, x):
        return super().forward(x) + F.pixel_shuffle(self.skip(x), 2)


class UpsampleConvSkip(ConvSkipFirst):
    def build_up(self):
        self.skip = nn.Sequential(nn.Upsample(scale_factor=2), conv(3, 3))
        return shuffle()


class WeightNorm(ConvSkipFirst):
    def build_up(self):
        up = super().build_up()
        for layer in (self.skip[0], up[0]):
            parametrizations.weight_norm(layer)
        return up


class OnlyTheImage(nn.Module):
    """No layer takes more channels than the image has."""

    def __init__(self):
        super().__init__()
        self.up = shuffle(3)

    def forward(self, x):
        return self.up(x)


class ActivationBeforeShuffle(Base):
    def build_up(self):
        return shuffle(FEATURES, 3, nn.ReLU())


class PReLUBeforeShuffle(Base):
    def build_up(self):
        return shuffle(FEATURES, 3, nn.BatchNorm2d(12), nn.PReLU(12))


class Padded(Base):
    """To a multiple of the class attribute."""

    to = 8

    def forward(self, x):
        height, width = x.shape[2:]
        return super().forward(F.pad(x, (0, -width % self.to, 0, -height % self.to)))[:, :, :2 * height, :2 * width]


class PaddedTo16(Padded):
    to = 16  # more than the height of the first probe image


class Norm(Base):
    def build_up(self):
        return nn.Sequential(nn.BatchNorm2d(FEATURES), shuffle())


class Attention(Base):
    """On tokens (N, L, C)."""

    def build_up(self):
        self.norm, self.mlp = nn.LayerNorm(FEATURES), nn.Linear(FEATURES, FEATURES)
        self.attention = nn.MultiheadAttention(FEATURES, 2, batch_first=True)
        return shuffle()

    def features(self, x):
        features = super().features(x)
        tokens = features.flatten(2).transpose(1, 2)
        tokens = self.mlp(tokens + self.attention(self.norm(tokens), tokens, tokens)[0])
        return tokens.transpose(1, 2).reshape(features.shape)


class ChannelsLast(Base):
    """Layers on (N, H, W, C), where C is twice the width of a small image."""

    def build_up(self):
        self.wide, self.mlp, self.narrow = conv(FEATURES, 32, 1), nn.Sequential(nn.Linear(32, 32), nn.GELU()), conv(
            32, FEATURES, 1)
        return shuffle()

    def features(self, x):
        tokens = self.wide(super().features(x)).permute(0, 2, 3, 1)
        return self.narrow(self.mlp(tokens).permute(0, 3, 1, 2))


class Unshuffled(Base):
    def build_up(self):
        self.head = conv(12, FEATURES)
        return nn.Sequential(conv(FEATURES, 48), nn.PixelShuffle(4))

    def forward(self, x):
        return super().forward(F.pixel_unshuffle(x, 2))


class TwoStages(Base):
    def build_up(self):
        return nn.Sequential(shuffle(FEATURES, FEATURES), shuffle(FEATURES, FEATURES), nn.Conv2d(FEATURES, 3, 2, 2))


class UNetBody(Base):
    """Goes down and up again before it upsamples."""

    def build_up(self):
        self.down, self.back = conv(FEATURES, FEATURES, stride=2), nn.ConvTranspose2d(FEATURES, FEATURES, 4, 2, 1)
        return shuffle()

    def features(self, x):
        return self.back(F.relu(self.down(super().features(x))))


class Recursive(Base):
    """Upsamples after each recursion."""

    def forward(self, x):
        features, images = self.head(x), []
        for _ in range(3):
            features = F.relu(self.body(features))
            images.append(self.up(features))
        return sum(images) / 3


class FromTokens(Base):
    """Upsamples the output of a linear layer, which is no map."""

    def build_up(self):
        self.skip = nn.Sequential(conv(3, 12, 5), nn.PixelShuffle(2))
        return nn.Linear(FEATURES, 12)

    def forward(self, x):
        tokens = self.features(x).flatten(2).transpose(1, 2)
        return F.pixel_shuffle(self.up(tokens).transpose(1, 2).reshape(len(x), 12, *x.shape[2:]), 2) + self.skip(x)


class NoImage(Base):
    def forward(self, x):
        return [self.features(x)]


# network -> the module whose input are the features, their channels, and the size of the SR image over theirs
NETWORKS = {
    **dict.fromkeys((
        Base, ReturnsTuple, ReturnsList, ReturnsDict, ReturnsDictOfOtherNames, TupleInTraining, BicubicSkip,
        UpsampleThenConv, Transposed, FunctionalShuffleThenConv, ConvSkipFirst, ConvSkipBetween, ConvSkipLast,
        UpsampleConvSkip, WeightNorm, ActivationBeforeShuffle, PReLUBeforeShuffle, Padded, PaddedTo16, Attention,
        ChannelsLast, UNetBody, Recursive), ('up.0', FEATURES, 2)),
    FunctionalInterpolate: ('up.0', FEATURES, 1),  # enlarged before any module takes them
    BicubicFirst: ('up', FEATURES, 1), FunctionalShuffle: ('up', FEATURES, 2), ConvSkipOfFunctions: ('up', FEATURES, 2),
    Norm: ('up.1.0', FEATURES, 2), Unshuffled: ('up.0', FEATURES, 4), TwoStages: ('up.0.0', FEATURES, 2),
    OnlyTheImage: ('up.0', 3, 2),
}


@pytest.fixture
def registered(monkeypatch):
    for cls in (*NETWORKS, FromTokens, NoImage):
        monkeypatch.setitem(ARCH_REGISTRY._obj_map, cls.__name__, cls)


def get_name(value):
    return value.__name__ if isinstance(value, type) else ''


@pytest.mark.parametrize(('cls', 'layer'), NETWORKS.items(), ids=get_name)
def test_both_steps_of_an_irregular_network(cls, layer):
    """The right features are found, and forward and backward run in training and evaluation."""
    backbone = {'type': cls.__name__}
    found = find_feature_layer(cls())
    assert (found.module, found.num_feat, found.upscale, found.scale) == (*layer, 2)
    x = torch.rand(2, 3, 18, 14)
    step1, step2 = WithVariance(backbone), TwoStep(backbone)
    step2.load_state_dict(step1.state_dict())
    for net in (step1, step2):
        for mode in (True, False):
            net.train(mode)
            sr, log_var = net(x, return_log_var=True)
            assert sr.shape == log_var.shape == (2, 3, 36, 28)
            assert torch.is_tensor(net(x))
            (sr.sum() + log_var.sum()).backward()
        assert torch.equal(net(x), sr)
    assert step1.var_conv[0].weight.grad.abs().sum() > 0
    assert all(parameter.grad is not None for parameter in step2.sr_net.parameters())
    plain = cls()
    assert forward_with_outputs(plain, x, [], {})[0].shape == sr.shape
    assert torch.equal(step1.eval().log_var(x), step1(x, return_log_var=True)[1])


def test_network_that_upsamples_tokens():
    with pytest.raises(UserError, match=r'FromTokens: features: cannot be found automatically; set it to the name of .*'
                                         r'the channels of their input: head \(3\), body \(8\), skip \(3\)'):
        WithVariance({'type': 'FromTokens'})


def test_output_without_an_image():
    with pytest.raises(UserError, match=r'NoImage: the network returns a list without an image \(N, C, H, W\)'):
        probe_shapes(NoImage())


def test_named_image_comes_first():
    first, named = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    for key in ('sr', 'out', 'output', 'pred'):
        assert get_sr_image({'a': first, key: named}) is named
    assert get_sr_image({'out': torch.zeros(1, 8, 4, 4), 'a': first}) is first
