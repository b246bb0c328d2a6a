"""Keywords of ssh_config(5): those of OpenSSH 10, and those that vendors add. Any other is probably misspelled."""

from __future__ import annotations

import difflib

from peerstage.errors import escape
from peerstage.session.patterns import match_pattern_list

#: As ssh_config(5) writes them.
_CURRENT = [
    "AddKeysToAgent",
    "AddressFamily",
    "BatchMode",
    "BindAddress",
    "BindInterface",
    "CanonicalDomains",
    "CanonicalizeFallbackLocal",
    "CanonicalizeHostname",
    "CanonicalizeMaxDots",
    "CanonicalizePermittedCNAMEs",
    "CASignatureAlgorithms",
    "CertificateFile",
    "ChannelTimeout",
    "CheckHostIP",
    "Ciphers",
    "ClearAllForwardings",
    "Compression",
    "ConnectionAttempts",
    "ConnectTimeout",
    "ControlMaster",
    "ControlPath",
    "ControlPersist",
    "DynamicForward",
    "EnableEscapeCommandline",
    "EnableSSHKeysign",
    "EscapeChar",
    "ExitOnForwardFailure",
    "FingerprintHash",
    "ForkAfterAuthentication",
    "ForwardAgent",
    "ForwardX11",
    "ForwardX11Timeout",
    "ForwardX11Trusted",
    "GatewayPorts",
    "GlobalKnownHostsFile",
    "GSSAPIAuthentication",
    "GSSAPIDelegateCredentials",
    "HashKnownHosts",
    "Host",
    "HostbasedAcceptedAlgorithms",
    "HostbasedAuthentication",
    "HostKeyAlgorithms",
    "HostKeyAlias",
    "HostName",
    "IdentitiesOnly",
    "IdentityAgent",
    "IdentityFile",
    "IgnoreUnknown",
    "Include",
    "IPQoS",
    "KbdInteractiveAuthentication",
    "KbdInteractiveDevices",
    "KexAlgorithms",
    "KnownHostsCommand",
    "LocalCommand",
    "LocalForward",
    "LogLevel",
    "LogVerbose",
    "MACs",
    "Match",
    "NoHostAuthenticationForLocalhost",
    "NumberOfPasswordPrompts",
    "ObscureKeystrokeTiming",
    "PasswordAuthentication",
    "PermitLocalCommand",
    "PermitRemoteOpen",
    "PKCS11Provider",
    "Port",
    "PreferredAuthentications",
    "ProxyCommand",
    "ProxyJump",
    "ProxyUseFdpass",
    "PubkeyAcceptedAlgorithms",
    "PubkeyAuthentication",
    "RefuseConnection",
    "RekeyLimit",
    "RemoteCommand",
    "RemoteForward",
    "RequestTTY",
    "RequiredRSASize",
    "RevokedHostKeys",
    "SecurityKeyProvider",
    "SendEnv",
    "ServerAliveCountMax",
    "ServerAliveInterval",
    "SessionType",
    "SetEnv",
    "StdinNull",
    "StreamLocalBindMask",
    "StreamLocalBindUnlink",
    "StrictHostKeyChecking",
    "SyslogFacility",
    "Tag",
    "TCPKeepAlive",
    "Tunnel",
    "TunnelDevice",
    "UpdateHostKeys",
    "User",
    "UserKnownHostsFile",
    "VerifyHostKeyDNS",
    "VersionAddendum",
    "VisualHostKey",
    "WarnWeakCrypto",
    "XAuthLocation",
]
#: Aliases, and keywords that ssh accepts and ignores (readconf.c: oIgnore, oDeprecated, oUnsupported).
_FORMER = [
    "afstokenpassing",
    "challengeresponseauthentication",
    "cipher",
    "compressionlevel",
    "dsaauthentication",
    "fallbacktorsh",
    "globalknownhostsfile2",
    "hostbasedkeytypes",
    "identityfile2",
    "keepalive",
    "kerberosauthentication",
    "kerberostgtpassing",
    "protocol",
    "pubkeyacceptedkeytypes",
    "rhostsauthentication",
    "rhostsrsaauthentication",
    "rsaauthentication",
    "skeyauthentication",
    "smartcarddevice",
    "tisauthentication",
    "useprivilegedport",
    "userknownhostsfile2",
    "useroaming",
    "usersh",
]
#: Keywords that vendors patch in.
_DEBIAN_AND_FEDORA = [
    "gssapiclientidentity",
    "gssapikexalgorithms",
    "gssapikeyexchange",
    "gssapirenewalforcesrekey",
    "gssapiserveridentity",
    "gssapitrustdns",
    "protocolkeepalives",
    "rsaminsize",
    "setuptimeout",
    "useblacklistedkeys",
]
_MACOS = ["askpassgui", "keychainintegration", "usekeychain"]
#: HPN-SSH; FreeBSD's ssh had the older ones.
_HPN = [
    "disablemtaes",
    "fallback",
    "fallbackport",
    "happydelay",
    "happyeyes",
    "hpnbuffersize",
    "hpndisabled",
    "metrics",
    "metricsinterval",
    "metricspath",
    "noneenabled",
    "nonemacenabled",
    "noneswitch",
    "tcprcvbuf",
    "tcprcvbufpoll",
    "usemptcp",
]
_KNOWN = frozenset([*map(str.lower, _CURRENT), *_FORMER, *_DEBIAN_AND_FEDORA, *_MACOS, *_HPN])
#: Characters that are shown of an unknown keyword.
_LONGEST = 60


def is_known(keyword: str, ignored: str = "") -> bool:
    """Return whether *keyword*, in lower case, exists or matches the pattern list *ignored* (IgnoreUnknown)."""
    return keyword in _KNOWN or match_pattern_list(keyword, ignored.lower())


def spelled(keyword: str) -> str:
    """Return *keyword* as ssh_config(5) writes it."""
    return next((name for name in _CURRENT if name.lower() == keyword.lower()), keyword)


def describe_unknown(keyword: str) -> str:
    """Return a sentence about the unknown *keyword*, spelled as in the file, and suggest the nearest known one."""
    names = {name.lower(): name for name in _CURRENT}
    nearest = difflib.get_close_matches(keyword[:_LONGEST].lower(), names, n=1, cutoff=0.7)
    hint = f" Did you mean {names[nearest[0]]}?" if nearest else ""
    return f"{escape(keyword[:_LONGEST])}: unknown keyword.{hint}"
