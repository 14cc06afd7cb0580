"""Loops over many QuPath objects that run inside Java.

A call from Python into Java takes microseconds, and a tile takes twenty of them. Method handles
(``java.lang.invoke``) put the calls for one row together in Java, and a stream runs them for all.

A "row function" below is a handle that takes a row's number (int) and returns something.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jpype
import numpy as np
from jpype import JArray, JClass, JDouble, JFloat, JInt, JLong, JObject

_PRIMITIVES = {"f8": JDouble, "f4": JFloat, "i8": JLong, "i4": JInt}


@cache
def _java(name: str) -> Any:
    return JClass(name)


def _handles() -> Any:
    return _java("java.lang.invoke.MethodHandles")


def _class(kind: Any) -> Any:
    return _java("java.lang.Void").TYPE if kind is None else kind.class_


def _type(returns: Any, *takes: Any) -> Any:
    """Return the type of a handle; classes are JClass, JPype's primitives, or None for void."""
    classes = JArray(_java("java.lang.Class"))([_class(kind) for kind in takes])
    return _java("java.lang.invoke.MethodType").methodType(_class(returns), classes)


def method(owner: Any, name: str, returns: Any, *takes: Any) -> Any:
    """Return a public method as a handle that takes the object first."""
    return _handles().publicLookup().findVirtual(owner.class_, name, _type(returns, *takes))


def static(owner: Any, name: str, returns: Any, *takes: Any) -> Any:
    """Return a public static method as a handle."""
    return _handles().publicLookup().findStatic(owner.class_, name, _type(returns, *takes))


def constructor(owner: Any, *takes: Any) -> Any:
    """Return a public constructor as a handle."""
    return _handles().publicLookup().findConstructor(owner.class_, _type(None, *takes))


def protected(owner: Any, name: str, *takes: Any) -> Any:
    """Return a protected method as a handle that takes the object first and returns nothing."""
    found = owner.class_.getDeclaredMethod(name, *map(_class, takes))
    found.setAccessible(True)
    handle = _handles().publicLookup().unreflect(found)
    return handle.asType(handle.type().changeReturnType(_class(None)))


def fixed(handle: Any, position: int, *values: Any) -> Any:
    """Return a handle with the arguments from `position` on already given."""
    return _handles().insertArguments(handle, position, JArray(JObject)(list(values)))


def of_result(handle: Any, then: Any) -> Any:
    """Return a handle that hands what `handle` returns to `then`."""
    return _handles().filterReturnValue(handle, then)


def of_argument(handle: Any, before: Any) -> Any:
    """Return a handle that hands `handle` what `before` makes of its first argument."""
    fitting = before.asType(before.type().changeReturnType(handle.type().parameterType(0)))
    typed = JArray(_java("java.lang.invoke.MethodHandle"))([fitting])
    return _handles().filterArguments(handle, 0, typed)


def if_true(test: Any, then: Any, otherwise: Any) -> Any:
    """Return a handle that asks `test` which of two handles of one type to call."""
    return _handles().guardWithTest(test, then, otherwise)


def nothing_of(kind: Any, returns: Any) -> Any:
    """Return a handle that takes a `kind` and returns null, as a `returns`."""
    null = _handles().constant(returns.class_, JObject(None, returns))
    return _handles().dropArguments(null, 0, _classes(kind))


def column(values: np.ndarray) -> Any:
    """Return a row function of numbers (n,)."""
    values = np.ascontiguousarray(values)
    return _getter(JArray.of(values, _PRIMITIVES[values.dtype.str[1:]]))


def table(kind: Any, values: Sequence[Any], rows: np.ndarray) -> Any:
    """Return a row function that gives `values[rows[i]]`, Java objects of a `kind` or None."""
    return of_result(column(rows.astype(np.int32)), _getter(JArray(kind)(list(values))))


def _getter(array: Any) -> Any:
    return _handles().arrayElementGetter(array.getClass()).bindTo(array)


def row_function(handle: Any, *arguments: Any) -> Any:
    """Return the row function that calls `handle` with what those of its arguments give."""
    filtered = _handles().filterArguments(handle, 0, _fitting(handle, 0, arguments))
    returns = handle.type().returnType()
    shape = _java("java.lang.invoke.MethodType").methodType(returns, _class(JInt))
    return _handles().permuteArguments(filtered, shape, JArray(JInt)([0] * len(arguments)))


def action(handle: Any, *arguments: Any) -> Any:
    """Return a handle (thing, row) that calls `handle` with a thing and its row's arguments."""
    filtered = _handles().filterArguments(handle, 1, _fitting(handle, 1, arguments))
    count = len(arguments)
    shape = filtered.type().dropParameterTypes(1, 1 + count).appendParameterTypes(_classes(JInt))
    return _handles().permuteArguments(filtered, shape, JArray(JInt)([0] + [1] * count))


def _fitting(handle: Any, first: int, functions: Sequence[Any]) -> Any:
    """Return row functions so that they give what a handle takes, from its `first` argument on."""
    wanted = list(handle.type().parameterList())[first:]
    return JArray(_java("java.lang.invoke.MethodHandle"))(
        [
            _handles().explicitCastArguments(each, each.type().changeReturnType(kind))
            for each, kind in zip(functions, wanted, strict=True)
        ]
    )


def made(make: Any, *actions: Any) -> Any:
    """Return the row function that makes a thing, does each action to it, and returns it."""
    thing = make.type().returnType()
    done = _handles().dropArguments(_handles().identity(thing), 1, _classes(JInt))
    for each in reversed(actions):
        done = _handles().foldArguments(done, each)
    return _handles().foldArguments(done, make)


def always(handle: Any) -> Any:
    """Return the row function that calls a handle without arguments, whatever the row."""
    return _handles().dropArguments(handle, 0, _classes(JInt))


def _classes(*kinds: Any) -> Any:
    return JArray(_java("java.lang.Class"))([_class(kind) for kind in kinds])


def run(function: Any, count: int) -> Any:
    """Return a java.util.List of what a row function gives for rows 0 to `count`."""
    function = function.asType(_type(_java("java.lang.Object"), JInt))
    rows = _java("java.util.stream.IntStream").range(0, count)
    done = rows.mapToObj(_as(_java("java.util.function.IntFunction"), function))
    return _java("java.util.Arrays").asList(done.toArray())


def taken(objects: Any, rows: np.ndarray) -> Any:
    """Return a java.util.List of some of the objects of another."""
    get = method(_java("java.util.List"), "get", _java("java.lang.Object"), JInt)
    return run(of_result(column(rows.astype(np.int32)), get.bindTo(objects)), len(rows))


def numbers(objects: Any, handle: Any) -> np.ndarray:
    """Return what a handle (object → number) gives for each object, (n,) float64 or int64."""
    thing, returns = _java("java.lang.Object"), str(handle.type().returnType().getName())
    stream = objects.stream()
    if returns == "double":
        function = _as(
            _java("java.util.function.ToDoubleFunction"), handle.asType(_type(JDouble, thing))
        )
        return np.array(stream.mapToDouble(function).toArray(), dtype=np.float64)
    typed = _handles().explicitCastArguments(handle, _type(JLong, thing))
    function = _as(_java("java.util.function.ToLongFunction"), typed)
    return np.array(stream.mapToLong(function).toArray(), dtype=np.int64)


def kinds(objects: Any, handle: Any) -> tuple[list[Any], np.ndarray]:
    """Return what different things a handle (object → thing) gives, and which for each object.

    The things are Java's, null among them as None; (n,) int64 are their places in the list.
    """
    thing = _java("java.lang.Object")
    function = _as(_java("java.util.function.Function"), handle.asType(_type(thing, thing)))
    given = _java("java.util.Arrays").asList(objects.stream().map(function).toArray())
    different = list(given.stream().distinct().toArray())
    places = _java("java.util.HashMap")()
    for place, each in enumerate(different):
        places.put(each, JLong(place))
    place_of = method(_java("java.util.Map"), "get", thing, thing).bindTo(places)
    number = place_of.asType(_type(_java("java.lang.Long"), thing))
    value = method(_java("java.lang.Long"), "longValue", JLong)
    return different, numbers(given, of_result(number, value))


def _as(interface: Any, handle: Any) -> Any:
    proxies = jpype.JClass("java.lang.invoke.MethodHandleProxies")
    return proxies.asInterfaceInstance(interface.class_, handle)
