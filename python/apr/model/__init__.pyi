from apr.model.config import ModelConfig as ModelConfig
from apr.model.decoder import Decoder as Decoder
