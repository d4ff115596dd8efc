//! Examples that several operations show.

use serde_json::{Value, json};

/// A challenge.
pub const CHALLENGE: &str = "wB3tXkqU0d9u6yqk1pXcZ0m3rT8sV2aN";
/// An access token; its signature is nobody's.
pub const ACCESS: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoiYWNjZXNzIn0.c2lnbmF0dXJl";
/// A refresh token; its signature is nobody's.
pub const REFRESH: &str = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl";
/// An ID token of Google's; its signature is nobody's.
pub const ID_TOKEN: &str =
    "eyJhbGciOiJSUzI1NiIsImtpZCI6ImExIn0.eyJpc3MiOiJodHRwczovL2FjY291bnRzLmdvb2dsZS5jb20ifQ.c2lnbmF0dXJl";
/// A request id.
pub const REQUEST_ID: &str = "5f0c1d2e3b4a59687786958493a2b1c0";

/// A user's id as reset links have it.
pub const UIDB64: &str = "MDE5ODlhNGUtN2MxYi03ZDUyLTljM2UtNGY4YTJiNmQxZTkw";
/// The token of a reset link.
pub const RESET_TOKEN: &str = "q0T2m8yV5cR1nXw7ZkLh3uB9sE4aJ6dF";

const USER_ID: &str = "01989a4e-7c1b-7d52-9c3e-4f8a2b6d1e90";
const MOMENT: &str = "2026-03-04T05:06:07.089Z";

/// `data` of a sign-in.
pub fn login_data() -> Value {
    json!({
        "access": ACCESS,
        "refresh": REFRESH,
        "expires_in": 900,
        "token_type": "Bearer",
        "user_id": USER_ID,
        "role": "client",
        "identifying_info": "ada@example.com",
        "is_verified": true,
        "user": user()
    })
}

/// A recovery code.
pub const RECOVERY_CODE: &str = "k3vq-7tzn-2lsd-pw5m-hx4a-uc6j";

/// `data` of the signed-in user's second factor.
pub fn mfa_state() -> Value {
    json!({ "enabled": true, "methods": ["totp", "recovery_code"], "recovery_codes_left": 9 })
}

/// `data` of a secret for an authenticator.
pub fn totp_enrolment() -> Value {
    json!({
        "secret": "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ",
        "otpauth_uri": "otpauth://totp/bifrons:ada@example.com?secret=GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ&issuer=bifrons\
                        &algorithm=SHA1&digits=6&period=30",
        "expires_in": 600
    })
}

/// `data` of new recovery codes.
pub fn recovery_codes() -> Value {
    json!({ "recovery_codes": [RECOVERY_CODE, "m6xc-a2hf-rj4e-yq3u-tz5k-db7w"] })
}

/// `data` of a refresh.
pub fn token_pair() -> Value {
    json!({ "access": ACCESS, "refresh": REFRESH, "expires_in": 900 })
}

/// `data` of a registration.
pub fn registered() -> Value {
    json!({
        "verification": { "channel": "email", "destination": "a***@example.com", "expires_in": 300 },
        "challenge": CHALLENGE
    })
}

fn user() -> Value {
    json!({
        "id": USER_ID,
        "user_id": USER_ID,
        "email": "ada@example.com",
        "phone": null,
        "first_name": "Ada",
        "last_name": "Obi",
        "role": "client",
        "auth_provider": "email",
        "is_verified": true,
        "is_staff": false,
        "avatar": "",
        "pid": "kqzvhwbtme",
        "date_joined": MOMENT,
        "last_login": MOMENT
    })
}

/// A user as they see themselves.
pub fn profile() -> Value {
    let mut profile = user();
    if let Some(profile) = profile.as_object_mut() {
        for (name, value) in
            [("bio", ""), ("country", "Nigeria"), ("state", "Lagos"), ("city", "Ikeja"), ("address", "")]
        {
            profile.insert(name.to_owned(), value.into());
        }
    }
    profile
}

/// `data` of a list of sessions.
pub fn sessions() -> Value {
    json!({
        "count": 1,
        "results": [{
            "id": "01989a4f-0c22-7aa1-8f31-6b7c8d9e0f12",
            "device": "mobile",
            "browser": "Firefox",
            "os": "Android",
            "ip": "192.0.2.7",
            "country": "Nigeria",
            "city": "Lagos",
            "created_at": MOMENT,
            "last_used_at": MOMENT,
            "expires_at": "2026-04-03T05:06:07.089Z",
            "is_current": true
        }],
        "next": null
    })
}

/// `data` of a list of sign-ins.
pub fn login_events() -> Value {
    json!({
        "count": 31,
        "results": [{
            "id": "01989a4f-0c22-7aa1-8f31-6b7c8d9e0f13",
            "at": MOMENT,
            "action": "login",
            "outcome": "failure",
            "reason": "invalid_credentials",
            "session_id": null,
            "device": "desktop",
            "browser": "Chrome",
            "os": "Windows 10",
            "ip": "2001:db8::7",
            "country": "",
            "city": ""
        }],
        "next": "AAZWQ0xvYmRsAZiaTwwieqGPMWt8jZ4P"
    })
}
