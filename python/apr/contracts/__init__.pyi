from apr.contracts.schema import Contract as Contract
from apr.contracts.schema import load_contract as load_contract
from apr.contracts.verdict import Verdict as Verdict
from apr.contracts.verdict import check as check
