from apr.convert.conversion import Conversion as Conversion
from apr.convert.conversion import convert as convert
from apr.convert.plan import ConvertOptions as ConvertOptions
from apr.convert.stream import FloatDtype as FloatDtype
from apr.convert.stream import OnTensor as OnTensor
