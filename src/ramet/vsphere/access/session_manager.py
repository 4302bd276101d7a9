"""The SessionManager: logging in and out, and who is in."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ramet.vsphere.access.sessions import Sessions, UserSession, invalid_login
from ramet.vsphere.core.calls import CURRENT, Call
from ramet.vsphere.core.faults import fault
from ramet.vsphere.core.objects import Mo, operation, prop
from ramet.vsphere.types import vim, vmodl

MOID = "SessionManager"
LOCALES = ("en", "en_US")
_NO_SSO = "There is no single sign-on here: log in with a user's name and password."


class SessionManager(Mo):
    wire = vim.SessionManager

    @property
    def _sessions(self) -> Sessions:
        return self.world.part(Sessions)

    # -- properties --------------------------------------------------------------------------------------------------

    @prop("sessionList")
    def get_sessions(self) -> list[Any]:
        """All for those who may end them; for others their own; none before a login."""
        current = _current()
        if current is None:
            return []
        shown = self._sessions.all() if current.may("Sessions.TerminateSession") else [current]
        return [described(session) for session in shown]

    @prop("currentSession")
    def get_current(self) -> Any:
        """Unset, and no fault, before a login: that is how clients find out."""
        current = _current()
        return described(current) if current is not None else None

    @prop("messageLocaleList")
    @prop("supportedLocaleList")
    def get_locales(self) -> list[str]:
        return list(LOCALES)

    @prop("defaultLocale")
    def get_default_locale(self) -> str:
        return "en"

    # -- in and out --------------------------------------------------------------------------------------------------

    @operation("Login", anonymous=True)
    async def login(self, call: Call, userName: str, password: str, locale: str | None = None) -> Any:
        _check_locale(locale)
        if call.session is not None:
            raise fault(vim.fault.InvalidLogin, "The current session is logged in already.")
        session = await self._sessions.login(userName, password, peer=call.peer, user_agent=call.user_agent)
        return self._opened(call, session, locale)

    def _opened(self, call: Call, session: UserSession, locale: str | None) -> Any:
        session.locale = locale or "en"
        call.reply.session = session
        return described(session)

    @operation("Logout", privilege="System.View")
    async def logout(self, call: Call) -> None:
        self._sessions.end(_own(call, self))

    @operation("LoginByToken", anonymous=True, refusal=_NO_SSO)
    async def login_by_token(self, call: Call, locale: str | None = None) -> Any:
        raise fault(vmodl.fault.NotSupported, _NO_SSO)

    @operation("LoginBySSPI", anonymous=True, refusal=_NO_SSO)
    async def login_by_sspi(self, call: Call, base64Token: str, locale: str | None = None) -> Any:
        raise fault(vmodl.fault.NotSupported, _NO_SSO)

    @operation("AcquireCloneTicket")
    async def acquire_clone_ticket(self, call: Call) -> str:
        return self._sessions.ticket(_own(call, self))

    @operation("CloneSession", anonymous=True)
    async def clone_session(self, call: Call, cloneTicket: str) -> Any:
        session = self._sessions.redeem(cloneTicket, peer=call.peer, user_agent=call.user_agent)
        return self._opened(call, session, None)

    @operation("SetLocale")
    async def set_locale(self, call: Call, locale: str) -> None:
        _check_locale(locale)
        _own(call, self).locale = locale

    # -- others' -----------------------------------------------------------------------------------------------------

    @operation("SessionIsActive")
    async def session_is_active(self, call: Call, sessionID: str, userName: str) -> bool:
        found = self._sessions.by_key(sessionID)
        return found is not None and found.user_name == userName

    @operation("TerminateSession")
    async def terminate(self, call: Call, sessionId: Sequence[str]) -> None:
        """All of them or none: NotFound for one that is not there, InvalidArgument for the caller's own."""
        own = _own(call, self)
        found = []
        for key in sessionId:
            session = self._sessions.by_key(key)
            if session is None:
                raise fault(vim.fault.NotFound, f"There is no session {key[:80]!r}.")
            if session is own:
                raise fault(
                    vmodl.fault.InvalidArgument, "A session ends itself by Logout.", invalidProperty="sessionId"
                )
            found.append(session)
        for session in found:
            self._sessions.end(session, "terminated")


def _current() -> UserSession | None:
    call = CURRENT.get()
    session = call.session if call is not None else None
    return session if isinstance(session, UserSession) and not session.is_over else None


def _own(call: Call, mo: Mo) -> UserSession:
    session = call.session_or_fault(mo)
    if not isinstance(session, UserSession):
        raise invalid_login()
    return session


def _check_locale(locale: str | None) -> None:
    """Clients name theirs; messages are in English whatever they name. What is no locale at all is refused."""
    if locale is not None and not (0 < len(locale) <= 35 and locale.replace("_", "").replace("-", "").isalnum()):
        raise fault(vim.fault.InvalidLocale, f"{locale[:80]!r} is no locale.")


def described(session: UserSession) -> Any:
    """As the API's data object."""
    return vim.UserSession(
        key=session.key,
        userName=session.user_name,
        fullName=session.user_name,
        loginTime=_moment(session.login_at),
        lastActiveTime=_moment(session.last_active_at),
        locale=session.locale,
        messageLocale="en",
        extensionSession=False,
        ipAddress=session.peer,
        userAgent=session.user_agent,
        callCount=session.calls,
    )


def _moment(at: float) -> datetime:
    return datetime.fromtimestamp(at, UTC)
