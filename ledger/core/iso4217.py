"""
ISO 4217 currencies and their minor units.

Source: ISO 4217:2015, list one (current currency and funds codes), published by SIX as the
maintenance agency, as amended up to the withdrawal of BGN (amendment 180, 2026-01-01).  Codes
without a minor unit (metals, drawing rights, testing) are left out: define them where needed.
A test compares the table with an independent package.

The table serves to parse and to define a currency at its first use.  From then on the scale is
read from the ledger's own log, so that a later edition of the table changes no amount.
"""

from typing import Final

_CODES_BY_SCALE = {
    0: """
    BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF
    """,
    2: """
    AED AFN ALL AMD AOA ARS AUD AWG AZN BAM BBD BDT BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF CHE CHF CHW CNY
    COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD HKD HNL HTG HUF IDR ILS
    INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MXV MYR
    MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP
    STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG
    """,
    3: """
    BHD IQD JOD KWD LYD OMR TND
    """,
    4: """
    CLF UYW
    """,
}

CURRENCIES: Final[dict[str, int]] = {code: scale for scale, codes in _CODES_BY_SCALE.items() for code in codes.split()}
"""Currency code → number of decimal places."""
