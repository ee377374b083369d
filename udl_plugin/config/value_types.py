"""Types of option values. Each one says what it expects, in the words of the error message."""
from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

from udl_plugin.errors import truncate_repr
from udl_plugin.inference.tiles import MIN_TILE

NUMBER = re.compile(r'\s*([-+]?)(\d+\.?\d*|\.\d+)(?:[eE]([-+]?)(\d+))?\s*')


def expected(what: str) -> WrapValidator:
    """Replaces pydantic's own message for a value of another type."""
    def check(value: Any, handler: Callable[[Any], Any]) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise make_error(wrong_value(value, what)) from None
    return WrapValidator(check)


def make_error(message: str, kind: str = 'value') -> PydanticCustomError:
    """An error for a validator to raise. `kind`: what pydantic calls its type."""
    return PydanticCustomError(kind, '{message}', {'message': message})


def wrong_value(value: Any, what: str) -> str:
    """The message for a value that is not what is expected, with a fix where the type alone is wrong."""
    number = NUMBER.fullmatch(value) if isinstance(value, str) else None
    if number and re.search('number|integer', what):
        sign, digits, exponent_sign, exponent = number.groups()
        if exponent is None:
            return f"expected {what}, got the string '{value}' (write {value.strip()}, without quotes)."
        fixed = f'{sign}{digits}{"" if "." in digits else ".0"}e{exponent_sign or "+"}{exponent}'
        return f"expected {what}, got the string '{value}' (YAML 1.1 reads it so; write {fixed})."
    if what == 'true or false' and str(value).lower() in ('true', 'false'):
        return f"expected {what}, got the string '{value}' (write {value.lower()}, without quotes)."
    text = truncate_repr(value)
    if isinstance(value, str):
        return f'expected {what}, got {text!r}.'
    fix = f" (write '{text}')" if type(value) in (int, float) and 'a string' in what else ''
    return f'expected {what}, got {text}{fix}.'


def _whole_number(value: Any) -> Any:
    """5e3 in YAML, a float, as the integer that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _is_plain_name(name: str) -> bool:
    """Whether a string can be the name of a file or folder and does not lead out of its folder."""
    return (name not in ('.', '..') and re.fullmatch(r'[^/\\\x00-\x1f\ud800-\udfff]+', name) is not None
            and len(name.encode()) <= 150)


def _only_if(test: Callable[[Any], bool]) -> AfterValidator:
    def check(value: Any) -> Any:
        if not test(value):
            raise ValueError
        return value
    return AfterValidator(check)


_Finite = Annotated[StrictFloat, Field(allow_inf_nan=False, ge=-1e15, le=1e15)]
_Fraction = Annotated[StrictFloat, Field(ge=0, lt=1)]
_Iteration = Annotated[StrictInt, Field(ge=0, le=10 ** 12), BeforeValidator(_whole_number)]
_Period = Annotated[StrictInt, Field(ge=1, le=10 ** 12), BeforeValidator(_whole_number)]

Flag = Annotated[StrictBool, expected('true or false')]
Text = Annotated[StrictStr, _only_if(lambda text: '\0' not in text), expected('a string')]
Texts = Annotated[list[StrictStr], expected('a list of strings')]
AnyList = Annotated[list[Any], expected('a list')]
FileName = Annotated[StrictStr, _only_if(_is_plain_name),
                     expected('a plain file name: a string of at most 150 bytes without / and \\')]
Integer = Annotated[StrictInt, expected('an integer')]
Count = Annotated[StrictInt, Field(ge=1), expected('an integer of at least 1')]
CountOrNone = Annotated[StrictInt, Field(ge=0), expected('an integer of at least 0')]
TileSize = Annotated[StrictInt, Field(ge=MIN_TILE), expected(f'an integer of at least {MIN_TILE} (LR pixels)')]
Iterations = Annotated[_Period, expected('an integer number of iterations, at least 1')]
Warmup = Annotated[StrictInt, Field(ge=-1), BeforeValidator(_whole_number),
                   expected('an integer number of iterations, or -1 for no warm-up')]
Milestones = Annotated[list[_Iteration], expected('a list of iterations (integers of at least 0)')]
Periods = Annotated[list[_Period], Field(min_length=1), expected('a list of iterations (integers of at least 1)')]
Number = Annotated[_Finite, expected('a number')]
Numbers = Annotated[list[_Finite], expected('a list of numbers')]
Positive = Annotated[StrictFloat, Field(gt=0, le=1e15, allow_inf_nan=False), expected('a number above 0')]
NotNegative = Annotated[StrictFloat, Field(ge=0, le=1e15, allow_inf_nan=False), expected('a number of at least 0')]
Ratio = Annotated[StrictFloat, Field(gt=0, le=10000, allow_inf_nan=False), expected('a number above 0, up to 10000')]
Workers = Annotated[StrictInt, Field(ge=0, le=256), expected('an integer from 0 to 256')]
Decay = Annotated[StrictFloat, Field(ge=0, lt=1), expected('a number from 0 to below 1')]
Betas = Annotated[list[_Fraction], Field(min_length=2, max_length=2),
                  expected('two numbers from 0 to below 1, such as [0.9, 0.999]')]
Seed = Annotated[StrictInt, Field(ge=0, lt=2 ** 31), expected(f'an integer from 0 to {2 ** 31 - 1}')]
Gpus = Annotated[Union[Literal['auto'], Annotated[StrictInt, Field(ge=0, le=1024)]],
                 expected('auto or an integer of at least 0')]
Amp = Annotated[Literal['bf16', 'fp16'], expected('bf16, fp16, or ~ for float32')]
GraphMode = Annotated[Union[Literal['auto'], StrictBool], expected('auto, true or false')]
Limits = Annotated[list[_Finite], Field(min_length=2, max_length=2), _only_if(lambda pair: 0 <= pair[0] < pair[1]),
                   expected('a lower and a higher number of 8-bit levels, such as [0, 20]')]
Colormap = Annotated[Literal['inferno', 'authors'], expected('inferno or authors')]
Color = Annotated[Literal['y'], expected('y, or ~ for all channels')]
Backend = Annotated[Literal['disk', 'lmdb'], expected('disk or lmdb')]  # memcached runs code that its options name
Prefetch = Annotated[Literal['cpu', 'cuda'], expected('cpu, cuda, or ~')]
Cache = Annotated[Literal['device', 'host'], expected('device or host')]
OnBadRecord = Annotated[Literal['stop', 'skip'], expected('stop or skip')]
Better = Annotated[Literal['higher', 'lower'], expected('higher or lower')]
Reduction = Annotated[Literal['mean', 'sum'], expected('mean or sum')]  # none gives a map, which cannot be trained with
NoReduction = Annotated[Literal['none'], expected('none, as each pixel is weighted')]
Criterion = Annotated[Literal['l1', 'fro'], expected('l1 or fro')]  # BasicSR's l2 uses a class that PyTorch lacks
Port = Annotated[StrictInt, Field(ge=1, le=65535), expected('an integer from 1 to 65535')]
