"""Keywords of ssh_config(5): those of OpenSSH 10, and those that vendors add. Any other is probably misspelled."""

from __future__ import annotations

import difflib

from peerstage.printable import escape
from peerstage.ssh.patterns import match_pattern_list

#: Spelled as in ssh_config(5).
_CURRENT = """
    AddKeysToAgent AddressFamily BatchMode BindAddress BindInterface CanonicalDomains CanonicalizeFallbackLocal
    CanonicalizeHostname CanonicalizeMaxDots CanonicalizePermittedCNAMEs CASignatureAlgorithms CertificateFile
    ChannelTimeout CheckHostIP Ciphers ClearAllForwardings Compression ConnectionAttempts ConnectTimeout
    ControlMaster ControlPath ControlPersist DynamicForward EnableEscapeCommandline EnableSSHKeysign EscapeChar
    ExitOnForwardFailure FingerprintHash ForkAfterAuthentication ForwardAgent ForwardX11 ForwardX11Timeout
    ForwardX11Trusted GatewayPorts GlobalKnownHostsFile GSSAPIAuthentication GSSAPIDelegateCredentials
    HashKnownHosts Host HostbasedAcceptedAlgorithms HostbasedAuthentication HostKeyAlgorithms HostKeyAlias HostName
    IdentitiesOnly IdentityAgent IdentityFile IgnoreUnknown Include IPQoS KbdInteractiveAuthentication
    KbdInteractiveDevices KexAlgorithms KnownHostsCommand LocalCommand LocalForward LogLevel LogVerbose MACs Match
    NoHostAuthenticationForLocalhost NumberOfPasswordPrompts ObscureKeystrokeTiming PasswordAuthentication
    PermitLocalCommand PermitRemoteOpen PKCS11Provider Port PreferredAuthentications ProxyCommand ProxyJump
    ProxyUseFdpass PubkeyAcceptedAlgorithms PubkeyAuthentication RefuseConnection RekeyLimit RemoteCommand
    RemoteForward RequestTTY RequiredRSASize RevokedHostKeys SecurityKeyProvider SendEnv ServerAliveCountMax
    ServerAliveInterval SessionType SetEnv StdinNull StreamLocalBindMask StreamLocalBindUnlink StrictHostKeyChecking
    SyslogFacility Tag TCPKeepAlive Tunnel TunnelDevice UpdateHostKeys User UserKnownHostsFile VerifyHostKeyDNS
    VersionAddendum VisualHostKey WarnWeakCrypto XAuthLocation
"""
#: Aliases, and keywords that ssh accepts and ignores (readconf.c: oIgnore, oDeprecated, oUnsupported).
_FORMER = """
    afstokenpassing challengeresponseauthentication cipher compressionlevel dsaauthentication fallbacktorsh
    globalknownhostsfile2 hostbasedkeytypes identityfile2 keepalive kerberosauthentication kerberostgtpassing
    protocol pubkeyacceptedkeytypes rhostsauthentication rhostsrsaauthentication rsaauthentication
    skeyauthentication smartcarddevice tisauthentication useprivilegedport userknownhostsfile2 useroaming usersh
"""
#: Patches of Debian, Fedora and macOS, and of HPN-SSH, which older versions of FreeBSD included.
_VENDORS = """
    gssapiclientidentity gssapikexalgorithms gssapikeyexchange gssapirenewalforcesrekey gssapiserveridentity
    gssapitrustdns protocolkeepalives rsaminsize setuptimeout useblacklistedkeys askpassgui keychainintegration
    usekeychain disablemtaes fallback fallbackport happydelay happyeyes hpnbuffersize hpndisabled metrics
    metricsinterval metricspath noneenabled nonemacenabled noneswitch tcprcvbuf tcprcvbufpoll usemptcp
"""
_SPELLING = {name.lower(): name for name in _CURRENT.split()}
_KNOWN = frozenset([*_SPELLING, *_FORMER.split(), *_VENDORS.split()])
#: Characters of an unknown keyword that an error shows.
_MAX_SHOWN = 60


def is_known(keyword: str, ignored: str = "") -> bool:
    """Return whether *keyword*, in lower case, exists or matches the pattern list *ignored* (IgnoreUnknown)."""
    return keyword in _KNOWN or match_pattern_list(keyword, ignored.lower())


def spell(keyword: str) -> str:
    """Return *keyword* as ssh_config(5) spells it."""
    return _SPELLING.get(keyword.lower(), keyword)


def describe_unknown(keyword: str) -> str:
    """Return a sentence about the unknown *keyword*, spelled as in the file, and suggest the nearest known one."""
    shown = keyword[:_MAX_SHOWN]
    nearest = difflib.get_close_matches(shown.lower(), _SPELLING, n=1, cutoff=0.7)
    hint = f" Did you mean {_SPELLING[nearest[0]]}?" if nearest else ""
    return f"{escape(shown)}: unknown keyword.{hint}"
