"""Imported before the examples of the pages: some show failures on purpose, and their log is discarded."""

from twisted.logger import globalLogBeginner

globalLogBeginner.beginLoggingTo([lambda event: None], redirectStandardIO=False, discardBuffer=True)
