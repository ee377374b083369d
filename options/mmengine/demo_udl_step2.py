# Step 2 on the demo's photos, as in options/demo/train_udl_step2.yml. Starts from step 1, of mmengine or BasicSR.
_base_ = ['demo_udl_step1.py']

model = dict(generator=dict(type='EDSRTwo'), pixel_loss=dict(type='UDL'))
load_from = 'work_dirs/demo_udl_step1/iter_1200.pth'

optim_wrapper = dict(optimizer=dict(lr=2e-4))
