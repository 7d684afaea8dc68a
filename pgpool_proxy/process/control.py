class WorkerControl:
    def __init__(self, worker): pass
    def tick(self, now): pass
