from dataclasses import dataclass
class Rows: pass
def find_rows(*a): raise NotImplementedError
