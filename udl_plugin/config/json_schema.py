"""JSON Schemas of option files, for editors: generated from the table in schema.py and the signatures of classes.

They accept every valid file, and report wrong names, types and ranges. What must agree between options, and classes
that users register themselves, only udl-train checks.
"""
from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

from basicsr.utils.registry import ARCH_REGISTRY, LOSS_REGISTRY, METRIC_REGISTRY
from pydantic import BaseModel, TypeAdapter

from udl_plugin.config import schema
from udl_plugin.config.class_options import (
    GIVEN,
    OF_ANNOTATIONS,
    OF_DEFAULTS,
    OF_LOSSES,
    OF_METRICS,
    OF_OPTIMIZERS,
    OF_SCHEDULERS,
    OPTIMIZERS,
    REQUIRED,
    SCHEDULERS,
    Adapters,
)
from udl_plugin.errors import lookup_class
from udl_plugin.plugin import REGISTERED

JsonSchema = dict[str, Any]

OTHER_NETWORKS = ('EDSR', 'RCAN', 'MSRResNet', 'RRDBNet', 'SwinIR', 'SRVGGNetCompact', 'ECBSR')  # of BasicSR
OTHER_LOSSES = ('L1Loss', 'MSELoss', 'CharbonnierLoss', 'WeightedTVLoss', 'PerceptualLoss')
OTHER_METRICS = ('calculate_psnr', 'calculate_ssim', 'calculate_niqe')
# definition -> registry, names that are suggested, and types that the signatures do not tell
CLASSES: dict[str, tuple[Any, tuple[str, ...], Adapters]] = {
    'Network': (ARCH_REGISTRY, (*REGISTERED['ARCH_REGISTRY'], *OTHER_NETWORKS), {}),
    'Loss': (LOSS_REGISTRY, (*REGISTERED['LOSS_REGISTRY'], *OTHER_LOSSES), OF_LOSSES),
    'Metric': (METRIC_REGISTRY, (*REGISTERED['METRIC_REGISTRY'], *OTHER_METRICS), OF_METRICS),
    'Optimizer': (OPTIMIZERS, tuple(OPTIMIZERS), OF_OPTIMIZERS),
    'Scheduler': (SCHEDULERS, tuple(SCHEDULERS), OF_SCHEDULERS)}
# where options of a class are, in the sections of schema.py
PLACES = {'network_g': 'Network', 'pixel_opt': 'Loss', 'perceptual_opt': 'Loss', 'optim_g': 'Optimizer',
          'scheduler': 'Scheduler'}


def make_json_schema(is_train: bool) -> JsonSchema:
    """The JSON Schema of option files for training, or for testing."""
    model, sets, other = (schema.TrainingFile, schema.PairedTrainSet, schema.TrainSet) if is_train else \
        (schema.TestFile, schema.PairedSet, schema.DatasetOptions)
    whole = tidy(model)
    defs = whole.setdefault('$defs', {})
    for used in (sets, other, schema.PairedSet, schema.DatasetOptions):
        part = tidy(used)
        defs.update(part.pop('$defs', {}))
        defs[used.__name__] = part
    for name, (registry, known, adapters) in CLASSES.items():
        defs[name] = describe_classes(registry, known, adapters, name)
    for section in (whole, *defs.values()):
        for key, name in PLACES.items():
            if key in section.get('properties', {}):
                refer(section['properties'][key], {'allOf': [{'$ref': f'#/$defs/{name}'}]})
        if 'metrics' in section.get('properties', {}):
            refer(section['properties']['metrics'],
                  {'type': 'object', 'additionalProperties': {'$ref': '#/$defs/Metric'}})
    defs['Criterion'] = {'type': 'object', 'required': ['type', 'reduction'], 'properties': {
        'type': {'type': 'string', 'description': 'A registered loss, of 8-bit levels.'},
        'reduction': {'const': 'none', 'description': 'Each pixel is weighted.'}}}
    pairs = {'enum': [schema.PAIRS, schema.WITH_MAPS, schema.CACHED]}

    def either(paired: type[BaseModel], general: type[BaseModel]) -> JsonSchema:
        return {'if': {'properties': {'type': pairs}}, 'then': {'$ref': f'#/$defs/{paired.__name__}'},
                'else': {'$ref': f'#/$defs/{general.__name__}'}}

    of_tests = either(schema.PairedSet, schema.DatasetOptions)
    whole['properties']['datasets'].update(
        {'additionalProperties': False, 'required': ['train'], 'properties': {'train': either(sets, other)},
         'patternProperties': {r'^val(_.*)?$': of_tests}} if is_train else
        {'additionalProperties': False, 'patternProperties': {r'^(val|test)(_.*)?$': of_tests}})
    models = [*REGISTERED['MODEL_REGISTRY'], 'SRModel']
    whole['properties']['model_type']['anyOf'] = [{'enum': models}, {'type': 'string'}]
    if not is_train:
        for key in ('train', 'logger'):  # a test reads neither
            whole['properties'][key] = {'description': 'Not read by a test.'}
    return {'$schema': 'http://json-schema.org/draft-07/schema#', **whole,
            'title': f'Options of {"udl-train" if is_train else "udl-test"}'}


def tidy(model: type[BaseModel]) -> JsonSchema:
    """pydantic's JSON Schema of a section, without titles, and with descriptions that it inherits."""
    whole = model.model_json_schema()
    for name, section in {model.__name__: whole, **whole.get('$defs', {})}.items():
        section.pop('title', None)
        section.pop('description', None)  # the docstring of a class is for programmers
        bases = getattr(schema, name, model).__mro__
        for key, option in section.get('properties', {}).items():
            option.pop('title', None)
            fields: list[Any] = [known[key] for base in bases if key in (known := getattr(base, 'model_fields', {}))]
            description = next((field.description for field in fields if field.description), None)
            if description:
                option['description'] = description
    return whole


def refer(option: JsonSchema, reference: JsonSchema) -> None:
    """Puts `reference` in place of `any mapping`, as which pydantic describes the options of classes."""
    target = next((one for one in option.get('anyOf', ()) if one.get('type') == 'object'), option)
    for key in ('type', 'additionalProperties'):
        del target[key]
    target.update(reference)


def describe_classes(registry: Any, names: tuple[str, ...], adapters: Adapters, definition: str) -> JsonSchema:
    """The schema of a mapping with the options of one class: those of `names` are known, others are accepted."""
    rules = [{'if': {'properties': {'type': {'const': name}}, 'required': ['type']},
              'then': describe_class(lookup_class(registry, name), adapters, definition)} for name in names]
    known: list[JsonSchema] = [{'enum': list(names)}]
    return {'type': 'object', 'required': ['type'], 'allOf': rules, 'properties': {
        'type': {'description': 'Name of the class.',
                 'anyOf': known if isinstance(registry, dict) else [*known, {'type': 'string'}]}}}


def describe_class(cls: Callable[..., Any], adapters: Adapters, definition: str) -> JsonSchema:
    """The options of a class, from its signature and the `Args:` of its docstring."""
    texts = read_args(cls)
    options: JsonSchema = {'type': True}
    required, accepts_any = [], False
    for name, parameter in inspect.signature(cls).parameters.items():
        if name in GIVEN or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            accepts_any = accepts_any or parameter.kind is parameter.VAR_KEYWORD
            continue
        options[name] = describe_parameter(name, parameter, adapters, definition)
        if name in texts:
            options[name]['description'] = texts[name]
        if parameter.default is parameter.empty or name in REQUIRED:
            required.append(name)
        elif isinstance(parameter.default, (bool, int, float, str)):
            options[name]['default'] = parameter.default
    if definition == 'Metric':
        options.setdefault('better', OF_METRICS['better'].json_schema())
    return {'properties': options, **({'required': required} if required else {}),
            **({} if accepts_any else {'additionalProperties': False})}


def describe_parameter(name: str, parameter: inspect.Parameter, adapters: Adapters, definition: str) -> JsonSchema:
    default = parameter.default
    if name == 'backbone' or (name == 'criterion' and default is None):
        nested: JsonSchema = {'allOf': [{'$ref': f'#/$defs/{definition}'}]}
        return nested if name == 'backbone' else {'anyOf': [{'$ref': '#/$defs/Criterion'}, {'type': 'null'}]}
    if isinstance(default, (list, tuple)) and not (default and all(type(one) in (int, float) for one in default)):
        return {}
    adapter: TypeAdapter[Any] | None = adapters.get(name) or OF_ANNOTATIONS.get(parameter.annotation) or \
        OF_DEFAULTS.get(type(default))
    if adapter is None:
        return {}
    found = {key: value for key, value in adapter.json_schema().items() if key != 'title'}
    types = found.pop('anyOf', None) or [found]
    if definition == 'Network':
        types = [*types, {'type': 'array'}]
    if default is None:
        types = [*types, {'type': 'null'}]
    return {'anyOf': types} if len(types) > 1 else dict(types[0])


def read_args(cls: Callable[..., Any]) -> dict[str, str]:
    """The texts of `Args:` in a docstring in Google's style: of the class, or of a class that it derives from."""
    found: dict[str, str] = {}
    for base in reversed(inspect.getmro(cls)) if isinstance(cls, type) else [cls]:
        block = re.search(r'^Args:\n((?:[ ].*\n|\n)+)', f'{inspect.cleandoc(base.__doc__ or "")}\n', re.MULTILINE)
        argument = re.compile(r'^ {4}(\w[\w, ]*?)(?: \([^)]*\))?: (.*(?:\n {5,}.*)*)', re.MULTILINE)
        for names, text in argument.findall(block[1] if block else ''):
            for name in names.split(', '):
                found[name] = ' '.join(text.split())
    return found
