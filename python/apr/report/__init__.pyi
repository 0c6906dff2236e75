from apr.report.page import write_comparison as write_comparison
from apr.report.page import write_report as write_report
