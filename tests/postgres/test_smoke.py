def test_smoke(ledger):
    ledger.open_account("world", asset="USD", type="equity")
    assert ledger.verify().ok
