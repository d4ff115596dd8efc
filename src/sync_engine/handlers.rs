//! What each operation does on this engine: read, call the service, answer.

use crate::{
    api::{Call, Edge, Handled, Operation, Success, docs, jwks},
    services::{
        authenticate::{Bearer, authenticate},
        change_mfa::{disable_mfa, mfa_state, replace_recovery_codes},
        change_password::change_password,
        confirm_reset::{ConfirmReset, ConfirmResetByLink, ConfirmResetByPhone, confirm_reset},
        enrol_totp::{begin_totp, confirm_totp},
        google::google,
        idempotency::{self, Asked, Begun},
        limits::admit,
        login::login,
        login_events::login_events,
        logout::logout,
        model::UserId,
        pages::PageQuery,
        problem::Problem,
        profile::update_profile,
        ready::ready,
        refresh::{Refresh, refresh},
        register::register,
        request_reset::request_reset,
        resend_otp::resend_otp,
        run::run,
        sessions::{revoke, revoke_others, sessions},
        verify_mfa::verify_mfa,
        verify_otp::verify_otp,
        verify_token::verify_token,
    },
};

use super::ports::BlockingPorts;

type Outcome = Result<Success, Problem>;

/// Counts the request against its limits, recognises its bearer where one is needed, and does it.
/// `parameters` are what stands in the path for the names in the route's.
pub fn handle(ports: &BlockingPorts, edge: &Edge, call: &Call, operation: Operation, parameters: &[String]) -> Handled {
    // A refresh is counted where it is known whose token it shows.
    if operation == Operation::RefreshToken {
        return refreshed(ports, edge, call);
    }
    let bearer = match operation.needs_bearer() {
        false => None,
        true => match run(authenticate(ports, call.bearer(), operation.look())) {
            Ok(bearer) => Some(bearer),
            Err(error) => return Handled::new(None, Err(error.into())),
        },
    };
    let user = bearer.as_ref().map(|bearer| bearer.user.id);
    let standing = match run(admit(ports, operation.class(), &call.caller, user)) {
        Ok(standing) => standing,
        Err(problem) => return Handled::new(None, Err(problem)),
    };
    let work = || match &bearer {
        Some(bearer) => guarded(ports, edge, call, operation, parameters, bearer),
        None => open(ports, edge, call, operation, parameters),
    };
    let outcome = once(ports, call, operation, user, work);
    Handled::new(standing, outcome)
}

fn refreshed(ports: &BlockingPorts, edge: &Edge, call: &Call) -> Handled {
    let read = || {
        let body = call.read::<Refresh>()?.refresh.map(|token| token.0).filter(|token| !token.is_empty());
        match body {
            Some(token) => Ok(Some(token)),
            None => Ok(call.refresh_cookie(edge)?.map(str::to_owned)),
        }
    };
    match read() {
        Ok(token) => {
            let (standing, pair) = run(refresh(ports, &call.caller, token.as_deref()));
            Handled::new(standing, pair.map(|pair| Success::refreshed(edge, &pair)).map_err(Problem::from))
        }
        Err(problem) => Handled::new(None, Err(problem)),
    }
}

// Once for each idempotency key, where the operation takes one.
fn once(
    ports: &BlockingPorts,
    call: &Call,
    operation: Operation,
    user: Option<UserId>,
    work: impl FnOnce() -> Outcome,
) -> Outcome {
    let given = call.idempotency_key().filter(|_| operation.takes_idempotency_key());
    let Some((key, body)) = given else { return work() };
    let claim = match run(idempotency::begin(ports, &call.caller, Asked { route: operation.word(), key, user, body }))?
    {
        Begun::Fresh(claim) => claim,
        Begun::Replay(kept) => return Ok(Success::replayed(kept)),
    };
    let outcome = work();
    match outcome.as_ref().ok().and_then(Success::kept) {
        Some(kept) => run(idempotency::finish(ports, claim, &kept)),
        None => run(idempotency::release(ports, claim)),
    }
    outcome
}

fn open(ports: &BlockingPorts, edge: &Edge, call: &Call, operation: Operation, parameters: &[String]) -> Outcome {
    match operation {
        Operation::Register => Ok(Success::registered(&run(register(ports, &call.caller, call.read()?))?)),
        Operation::VerifyOtp => {
            let entered = run(verify_otp(ports, &call.caller, call.read()?))?;
            Ok(Success::entered(edge, "Your account is verified.", &entered))
        }
        Operation::ResendOtp => {
            run(resend_otp(ports, &call.caller, call.read()?))?;
            Ok(Success::code_sent())
        }
        Operation::Login => {
            let entered = run(login(ports, &call.caller, call.read()?))?;
            Ok(Success::entered(edge, "Login successful.", &entered))
        }
        Operation::VerifyMfa => {
            let signed_in = run(verify_mfa(ports, &call.caller, call.read()?))?;
            Ok(Success::signed_in(edge, "Login successful.", &signed_in))
        }
        Operation::Google => Ok(Success::entered_by_google(edge, &run(google(ports, &call.caller, call.read()?))?)),
        Operation::VerifyToken => {
            run(verify_token(ports, call.read()?))?;
            Ok(Success::token_valid())
        }
        Operation::RequestReset => {
            run(request_reset(ports, &call.caller, call.read()?))?;
            Ok(Success::reset_requested())
        }
        Operation::ConfirmReset => {
            let reset = call.read::<ConfirmReset>()?.read(ports)?;
            run(confirm_reset(ports, &call.caller, reset))?;
            Ok(Success::password_reset())
        }
        Operation::ConfirmResetByLink => {
            let [uidb64, token] = parameters else { return Err(Problem::server_error()) };
            let reset = call.read::<ConfirmResetByLink>()?.read(uidb64, token)?;
            run(confirm_reset(ports, &call.caller, reset))?;
            Ok(Success::password_reset())
        }
        Operation::ConfirmResetByPhone => {
            let reset = call.read::<ConfirmResetByPhone>()?.read(ports)?;
            run(confirm_reset(ports, &call.caller, reset))?;
            Ok(Success::password_reset())
        }
        Operation::JsonWebKeys => Ok(Success::document(jwks::document(&ports.keys))),
        Operation::OpenApi => docs::openapi(edge, call.version).map(Success::document),
        Operation::Docs => docs::page(edge, &call.path).map(Success::document),
        Operation::DocsFile => docs::file(edge, parameters).map(Success::document),
        Operation::Live => Ok(Success::live()),
        Operation::Ready => Success::ready(&run(ready(ports))),
        _ => Err(Problem::server_error()),
    }
}

fn guarded(
    ports: &BlockingPorts,
    edge: &Edge,
    call: &Call,
    operation: Operation,
    parameters: &[String],
    bearer: &Bearer,
) -> Outcome {
    match operation {
        Operation::Logout => {
            run(logout(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::logged_out(edge))
        }
        Operation::Me => Ok(Success::profile("Your profile.", &bearer.user)),
        Operation::UpdateMe => {
            let user = run(update_profile(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::profile("Your profile was updated.", &user))
        }
        Operation::ChangePassword => {
            let device = run(change_password(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::password_changed(edge, &device))
        }
        Operation::Mfa => Ok(Success::mfa_state(&run(mfa_state(ports, bearer))?)),
        Operation::BeginTotp => {
            let enrolment = run(begin_totp(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::totp_begun(&enrolment))
        }
        Operation::ConfirmTotp => {
            let codes = run(confirm_totp(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::mfa_enabled(&codes))
        }
        Operation::ReplaceRecoveryCodes => {
            let codes = run(replace_recovery_codes(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::recovery_codes(&codes))
        }
        Operation::DisableMfa => {
            run(disable_mfa(ports, &call.caller, bearer, call.read()?))?;
            Ok(Success::mfa_disabled())
        }
        Operation::Sessions => {
            let page = call.read_query::<PageQuery>()?.page()?;
            Ok(Success::sessions(&run(sessions(ports, bearer, page))?, bearer.session.id))
        }
        Operation::RevokeSession => {
            let [id] = parameters else { return Err(Problem::server_error()) };
            run(revoke(ports, &call.caller, bearer, id))?;
            Ok(Success::session_revoked())
        }
        Operation::RevokeOtherSessions => Ok(Success::others_revoked(run(revoke_others(ports, &call.caller, bearer))?)),
        Operation::LoginEvents => {
            let page = call.read_query::<PageQuery>()?.page()?;
            Ok(Success::login_events(&run(login_events(ports, bearer, page))?))
        }
        _ => Err(Problem::server_error()),
    }
}
