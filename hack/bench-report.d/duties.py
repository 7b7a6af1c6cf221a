"""The duties of Millrace that each peer has as it is measured here (hack/peers)."""

PEERS = ("River", "BullMQ", "Python service")
DUTIES = [
    ("the answer comes once the record is on disk", "yes, the insert", "yes", "yes"),
    ("accepts by HTTP and checks fields", "no", "no", "yes"),
    ("each record of a request has its own result", "no", "no", "no: all or none"),
    ("an id counts once, for as long as it is stored", "no", "no", "yes"),
    ("the same id with other content is reported", "no", "no", "no"),
    ("exact totals in the same transaction", "no: no data here", "no", "yes"),
    ("a notification with the summary before it", "no", "no", "yes"),
    ("no notification is lost or repeated by a crash", "no", "no",
     "no: sent after the commit, nothing reads the outbox"),
    ("notifications of a destination in order, with several workers", "no", "no", "no: with one worker only"),
    ("an alert above a threshold, decided in the commit", "no", "no", "no: sent after the commit"),
    ("several sinks that do not delay each other", "no", "no", "no"),
    ("a bad record is isolated, the others continue", "yes: jobs fail alone", "yes: jobs fail alone", "no"),
    ("work of a dead worker is taken over", "yes, by time", "yes, by time", "no"),
    ("a paused worker that continues changes nothing twice", "no", "no", "no"),
    ("a limit on the backlog, answered as such", "no", "no", "no"),
    ("the history of a record can be queried", "job rows, for a day", "no: removed here", "no"),
    ("totals can be verified against records while it runs", "no", "no", "no"),
]
