CONSOLE_PARAMETERS: dict[bytes, bytes] = {b"server_version": b"1.25.2/bouncer", b"client_encoding": b"UTF8"}
class Console:
    def __init__(self, session, control, is_admin): pass
    def received(self, data, now): pass
    def cancel(self, now): pass
    def closed(self): pass
