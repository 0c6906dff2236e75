from apr.data.loader import Loader as Loader
from apr.data.loader import LoaderState as LoaderState
from apr.data.rebuild import repair as repair
from apr.data.repair_report import RepairReport as RepairReport
from apr.data.shards import ShardDir as ShardDir
from apr.data.windows import Windows as Windows
