"""Value types of the option schema."""
import re
from typing import Annotated, Any, Literal, Union

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    TypeAdapter,
    ValidationError,
    WrapValidator,
)
from pydantic_core import PydanticCustomError

NUMBER = re.compile(r'\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*')


# ---- what a value may be


def constrained(type_, what, **limits):
    """A type for the table: `what` is said of any other value."""
    def check(value, handler):
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError('told', '{what}', {'what': what}) from None
    return Annotated[type_, Field(**limits), WrapValidator(check)]


def adapters(**kinds):
    return {name: TypeAdapter(kind) for name, kind in kinds.items()}


def whole_number(value):
    """5e3 of YAML, a float, as the whole number that it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _refuse(test):
    def check(value):
        if test(value):
            raise ValueError
        return value
    return AfterValidator(check)


_Finite = Annotated[StrictFloat, Field(allow_inf_nan=False, ge=-1e15, le=1e15)]
_Fraction = Annotated[StrictFloat, Field(ge=0, lt=1)]
_Iteration = Annotated[StrictInt, Field(ge=0, le=10 ** 12), BeforeValidator(whole_number)]
_Period = Annotated[StrictInt, Field(ge=1, le=10 ** 12), BeforeValidator(whole_number)]
_PlainName = Annotated[StrictStr, _refuse(lambda name: not is_plain_name(name))]



def is_plain_name(name):
    """Whether a text can be the name of a file or folder, and leads nowhere else."""
    return (name not in ('.', '..') and re.fullmatch(r'[^/\\\x00-\x1f]+', name) is not None
            and len(name.encode(errors='replace')) <= 150 and name == name.encode(errors='replace').decode())


Flag = constrained(StrictBool, 'true or false')
Text = constrained(Annotated[StrictStr, _refuse(lambda text: '\0' in text)], 'a text')
Texts = constrained(list[StrictStr], 'a list of texts')
FileName = constrained(_PlainName, 'a plain name of a file or folder, a text without / and \\ of at most 150 bytes')
Count = constrained(StrictInt, 'a whole number, 1 or more', ge=1)
CountOrNone = constrained(StrictInt, 'a whole number, 0 or more', ge=0)
Iterations = constrained(_Period, 'a whole number of iterations, 1 or more')
Warmup = constrained(Annotated[StrictInt, Field(ge=-1), BeforeValidator(whole_number)],
               'a whole number of iterations, or -1 for none')
Milestones = constrained(list[_Iteration], 'a list of whole numbers of iterations')
Periods = constrained(list[_Period], 'a list of whole numbers of iterations, 1 or more each', min_length=1)
Number = constrained(_Finite, 'a number')
Numbers = constrained(list[_Finite], 'a list of numbers')
Positive = constrained(StrictFloat, 'a number above 0', gt=0, le=1e15, allow_inf_nan=False)
NotNegative = constrained(StrictFloat, 'a number, 0 or more', ge=0, le=1e15, allow_inf_nan=False)
Ratio = constrained(StrictFloat, 'a number above 0, and at most 10000', gt=0, le=10000, allow_inf_nan=False)
Workers = constrained(StrictInt, 'a whole number from 0 to 256', ge=0, le=256)
Decay = constrained(StrictFloat, 'a number from 0 to below 1', ge=0, lt=1)
Betas = constrained(list[_Fraction], 'two numbers from 0 to below 1, such as [0.9, 0.999]', min_length=2, max_length=2)
Seed = constrained(StrictInt, f'a whole number from 0 to {2**31 - 1}', ge=0, lt=2**31)
Gpus = constrained(Union[Literal['auto'], Annotated[StrictInt, Field(ge=0, le=1024)]], 'auto or a whole number, 0 or more')
Amp = constrained(Literal['bf16', 'fp16'], 'bf16, fp16, or ~ for float32')
Limits = constrained(Annotated[list[_Finite], Field(min_length=2, max_length=2), _refuse(lambda pair: pair[0] >= pair[1])],
               'a lower and a higher number, such as [-1, 4]')
Color = constrained(Literal['y'], 'y, or ~ for all channels')
Prefetch = constrained(Literal['cpu', 'cuda'], 'cpu, cuda, or ~')
OnBadRecord = constrained(Literal['stop', 'skip'], 'stop or skip')
Better = constrained(Literal['higher', 'lower'], 'higher or lower')
Port = constrained(StrictInt, 'a whole number from 1 to 65535', ge=1, le=65535)
Options = dict[str, Any]  # of a class
